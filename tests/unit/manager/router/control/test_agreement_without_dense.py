"""Servers of a model without dense vectors agree if their embedding spaces do."""

import numpy as np

from tritonembed_manager.router.control.registry import Fingerprint

NONE = np.empty((3, 0), np.float32)


def test_without_dense_vectors_the_embedding_space_decides():
    ours = Fingerprint(NONE, "0123456789ab-float32")
    assert ours.difference(Fingerprint(NONE.copy(), "0123456789ab-bfloat16")) is None
    assert "embedding space" in (ours.difference(Fingerprint(NONE, "ba9876543210-float32")) or "")
    assert "0 dimensions" in (Fingerprint(np.ones((3, 4), np.float32)).difference(Fingerprint(NONE)) or "")
