"""Every case of the kernels without a GPU, in Triton's interpreter, which takes three minutes of a core."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_every_kernel_gives_what_its_reference_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr[-2000:]
