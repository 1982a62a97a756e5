"""The kernels without a GPU: in Triton's interpreter, in a process of its own (it is chosen at import).

This runs a few of the cases; tests/slow has all of them.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_every_kernel_gives_what_its_reference_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases", "few"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
