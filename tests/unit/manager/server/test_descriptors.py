"""The limit of file descriptors that a manager sets for itself and its servers."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, subprocess, sys
from tritonembed_manager.server.machine import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_limit(), flush=True)
subprocess.run([sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "becomes", "warns"),
    [(64, 64, 64, True), (64, 2048, 2048, False), (256, 512, 512, True), (1024, 4096, 4096, False)],
)
def test_the_limit_is_raised_for_child_processes_and_a_low_limit_is_reported(soft, hard, becomes, warns):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(soft=soft, hard=hard)], capture_output=True, text=True, check=True
    )
    line, inherited = sorted(run.stdout.splitlines(), key=lambda line: line.startswith("("))
    assert inherited == f"({becomes}, {hard})"
    assert (
        line == f"ulimit -n is {becomes}: no process can have more connections and files; further callers wait"
    ) is warns
