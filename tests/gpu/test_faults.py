"""The engine on a real GPU if memory runs out, a kernel fails, or the CUDA context is poisoned."""

import os
import subprocess
import sys

import pytest
from tests.models import ModelShelf

pytestmark = pytest.mark.gpu

PREPARE = """
import sys
import threading
import numpy as np
from tritonembed_engine.stub.process import prepare_process
prepare_process("0")
import torch
"""
LOAD = """
from tritonembed_engine.factory import create_engine
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.settings import ModelSettings
engine = {"graphs": {"enabled": False}}
settings = ModelSettings(model=sys.argv[1], vllm={"gpu_memory_utilization": 0.05}, engine=engine)
deaths, died = [], threading.Event()
engine = create_engine(settings, read_model_files(sys.argv[1]), "cuda", on_death=lambda: (deaths.append(1), died.set()))
rng = np.random.default_rng(0)
sentences = [rng.integers(1000, 20000, 64, dtype="<i4").tobytes() for _ in range(1024)]
assert engine.executor.name == "direct"
"""
RUN_OUT_OF_MEMORY = """
expected = engine.submit(sentences).result()
before = engine._batcher.max_tokens
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 10 * 2**20) / total)
answers = [engine.submit(sentences) for _ in range(4)]
for answer in answers:
    vectors = answer.result(60)
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999, cosines.min()
assert engine._batcher.max_tokens < before, (before, engine._batcher.max_tokens)
assert not deaths
engine.close()
print("recovered")
"""
BREAK_A_KERNEL = """
from tritonembed_engine.kernels import bert
def fail(*_):
    raise RuntimeError("PassManager::run failed")
bert.add_layer_norm = fail
"""
COMPUTE = """
assert not engine.executor._kernels._replaced
assert len(engine.submit(sentences).result(60)) == 1024
engine.close()
print("computed")
"""
POISON = """
from tritonembed_engine.errors import DeviceLost
assert len(engine.submit(sentences[:4]).result(60)) == 4
torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")]  # a device-side assertion
answers = [engine.submit(sentences) for _ in range(8)]
for answer in answers:
    error = answer.exception(60)
    assert isinstance(error, DeviceLost), repr(error)
assert died.wait(60)
assert deaths == [1]
print("lost")
sys.stdout.flush()
import os
os._exit(0)
"""


def run(shelf: ModelShelf, script: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs in a new process, because a poisoned context stays so. before: code that runs before the model's load."""
    command = [sys.executable, "-c", PREPARE + before + LOAD + script, str(shelf("bert"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[:1500] + done.stderr[-1500:]
    return done


def test_a_batch_without_room_is_computed_in_smaller_batches(shelf: ModelShelf) -> None:
    assert "recovered" in run(shelf, RUN_OUT_OF_MEMORY).stdout


def test_vllms_kernels_serve_if_one_of_ours_fails(shelf: ModelShelf) -> None:
    """LOAD checks that the direct executor still serves, after its comparison with vLLM's answers."""
    done = run(shelf, COMPUTE, BREAK_A_KERNEL)
    assert "computed" in done.stdout
    assert "vLLM's kernels serve, not ours: a kernel failed (RuntimeError)" in done.stderr


def test_a_poisoned_context_fails_every_request_and_asks_for_the_end(shelf: ModelShelf) -> None:
    assert "lost" in run(shelf, POISON).stdout
