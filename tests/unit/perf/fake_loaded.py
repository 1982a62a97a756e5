"""A LoadedExecutor whose vectors cost nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tritonembed_engine.executors.base import Ready
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.token_ids import TokenIds
from tritonembed_perf.scripts.executor import LoadedExecutor


class FakeExecutor:
    """Calls `seen` with the lengths of each batch's sentences. A vector is the sentence's first id and 1."""

    max_batch_sentences = 1024

    def __init__(self, seen: Callable[[list[int]], None]) -> None:
        self._seen = seen

    def launch(self, sentences: TokenIds) -> Ready:
        ids = list(sentences)
        self._seen([len(sentence) for sentence in ids])
        return Ready(np.array([[sentence[0], 1] for sentence in ids], dtype=np.float32))

    def close(self) -> None:
        pass


def fake_loaded(
    folder: Path,
    *,
    max_length: int = 512,
    most_tokens: int = 32768,
    vocab_size: int = 100,
    seen: Callable[[list[int]], None] = lambda lengths: None,
) -> LoadedExecutor:
    """folder: has the model's config.json."""
    files = SimpleNamespace(folder=folder, max_length=max_length, vocab_size=vocab_size, pooling="MEAN")
    return LoadedExecutor("fake", cast(Any, FakeExecutor(seen)), cast(ModelFiles, files), most_tokens)
