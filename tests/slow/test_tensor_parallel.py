"""A replica that is spread over several processes, on the CPU: gloo instead of NCCL, else as on several GPUs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.decoders import check_packed_batches, write_decoder
from tests.integration.preloaded import Preloaded, preloaded_python
from tests.models import ModelShelf

TWO = '{"tensor_parallel_size": 2}'


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    """vLLM's sums on a CPU use shared memory of a fixed name, which a killed process leaves behind."""
    yield
    for region in Path("/dev/shm").glob("-tp:*-cpushm_*"):
        region.unlink()


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    with preloaded_python() as started:
        yield started


@pytest.mark.parametrize("name", ["qwen3_emb", "bge_gemma2"])
def test_two_processes_give_the_vectors_of_sentence_transformers(
    preloaded: Preloaded, tmp_path: Path, name: str
) -> None:
    check_packed_batches(preloaded, write_decoder(tmp_path / name, name), tmp_path, TWO)


def run_spread(mode: str, model: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.slow.spread_executor", mode, str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def test_the_scheduler_serves_in_the_same_processes_if_the_direct_executor_is_wrong(shelf: ModelShelf) -> None:
    done = run_spread("wrong", shelf("qwen3"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the scheduler executor serves: one value is off" in done.stderr
    assert done.stdout.splitlines()[-1] == "scheduler: cosine 1.0000 and more to transformers"


def test_a_replica_ends_if_one_of_its_processes_is_killed(shelf: ModelShelf) -> None:
    done = run_spread("killed", shelf("qwen3"))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "the process of rank 1 ended (exit code -9): this replica ends" in done.stderr


def test_the_other_processes_end_with_the_replica(shelf: ModelShelf) -> None:
    done = run_spread("left", shelf("qwen3"))
    assert done.returncode == -9, done.stderr[-3000:]
    pid = int(done.stdout.splitlines()[-1])
    # The pipes of stdout and stderr ended, which the other process held too.
    assert not Path(f"/proc/{pid}/stat").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
