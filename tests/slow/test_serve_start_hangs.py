"""A start that hangs, and the reported steps of a start, on a real tritonserver with vLLM."""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tests.integration.serve import Serve

from tritonembed_manager.server.process import read_process
from tritonembed_perf.models import write_bert

LOADS_AFTER_TICKS = 100
STEP = re.compile(r"server-0: ([a-z].*) \((\d+) s\)$", re.MULTILINE)


@pytest.mark.timeout(900)
def test_a_stub_that_is_stopped_while_its_server_starts_is_noticed_and_embed_waits_for_the_next_start(
    tmp_path: Path,
) -> None:
    model = write_bert(tmp_path / "model", layers=2)
    manager = Serve("--model", model, "--device=cpu", "--num-replicas=1", "--tokenizer-instances=1")
    try:
        manager.until(lambda: manager.status().get("servers"))
        command = [sys.executable, "-c", "from tritonembed.cli import main; main()", "embed", "a sentence"]
        waiting = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={manager.port}", "--timeout=600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stub = manager.until(lambda: _embedder(manager))
        manager.until(lambda: (found := read_process(stub)) and found.cpu_ticks >= LOADS_AFTER_TICKS)
        stopped = time.monotonic()
        os.kill(stub, signal.SIGSTOP)
        manager.until(lambda: manager.server("server-0")["restarts"] == 1)
        # A start that does nothing is given up after a minute.
        assert time.monotonic() - stopped < 30
        manager.wait_ready()
        vectors, said = waiting.communicate(timeout=600)
        assert waiting.returncode == 0, said
        assert vectors
        assert said.startswith(f"tritonembed: {manager.target} is starting: waiting until it is ready")
        log = manager.log()
        assert "the python process of the model 'embedder' is stopped (SIGSTOP" in log
        steps = [(step, int(seconds)) for step, seconds in STEP.findall(log)]
        assert {"importing vLLM", "loading the weights"} <= {step for step, _ in steps}
        assert all(later - before <= 8 for (_, before), (_, later) in pairwise(steps))
    finally:
        manager.end()


def _embedder(manager: Serve) -> int | None:
    try:
        return manager.stub("server-0", "embedder")
    except (StopIteration, KeyError):
        return None
