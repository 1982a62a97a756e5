"""`tritonembed-manager replica` with a real model, from start to end. In tests/integration the model is an echo."""

import signal

import numpy as np
import pytest


def test_a_real_model_is_served_and_nothing_is_left_of_it(replica, model, tmp_path):
    options = ["--device=cpu", "--workers=1", "--work-dir", tmp_path / "work", "--dtype=float32", "--no-reference"]
    # The variable names another model. The command line wins.
    manager = replica("--model", model, *options, TRITONEMBED_MODEL="/no/such/model")
    manager.wait_ready()
    vector = np.frombuffer(manager.infer(b"a sentence"), "<f4")
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert len(manager.stubs()) == 2
    manager.process.send_signal(signal.SIGTERM)
    code, lines = manager.ended(limit=60)
    assert code == 0
    assert [line for line in lines if not line.startswith("tritonembed")] == []
