"""The processes of a replica that is spread over several GPUs."""

from typing import Any

import numpy as np
import pytest

from tritonembed_engine.errors import DeviceLost, OutOfMemory
from tritonembed_engine.executors.base import Ready
from tritonembed_engine.executors.ranks import MirroredExecutor, ranks_of
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import ONE_TOKEN


@pytest.mark.parametrize(
    ("vllm", "ranks"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 1}, 1),
        ({"tensor_parallel_size": 4}, 4),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 1),
        ({"tensor_parallel_size": 4, "distributed_executor_backend": "ray"}, 1),
    ],
)
def test_a_replica_has_a_process_per_gpu(vllm: dict[str, Any], ranks: int) -> None:
    assert ranks_of(ModelSettings.model_validate({"model": "m", "vllm": vllm})) == ranks


class FakeRanks:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, operation: str, *_: object) -> None:
        self.sent.append(operation)

    def close(self) -> None:
        self.sent.append("end")


class FakeExecutor:
    name, dtype, dimensions, max_batch_tokens, max_batch_sentences, depth = "direct", "float32", 4, 100, 10, 2
    refused_id, on_any_thread, pools_spans, token_dimensions = None, True, True, None
    error: Exception | None = None

    def launch(self, *_: object) -> Ready:
        if self.error:
            raise self.error
        return Ready(np.ones((1, 4), np.float32))

    def explain(self, error: Exception) -> Exception:
        return error

    def rest(self) -> None: ...

    def close(self) -> None: ...


def test_every_operation_runs_in_all_processes() -> None:
    ranks: Any = FakeRanks()
    executor = MirroredExecutor(FakeExecutor(), ranks)  # type: ignore[arg-type]
    assert executor.launch(ONE_TOKEN).result().tolist() == [[1.0] * 4]
    executor.rest()
    executor.close()
    assert ranks.sent == ["launch", "rest", "end"]


def test_a_batch_that_fails_ends_the_replica() -> None:
    """Without room in one process, the others would wait for it in the middle of the batch."""
    ranks: Any = FakeRanks()
    inner: Any = FakeExecutor()
    inner.error = OutOfMemory("the device has no room for a batch")
    executor = MirroredExecutor(inner, ranks)
    with pytest.raises(DeviceLost, match=r"a batch failed in one of the replica's processes \(OutOfMemory\)"):
        executor.launch(ONE_TOKEN)
    assert isinstance(executor.explain(inner.error), DeviceLost)
