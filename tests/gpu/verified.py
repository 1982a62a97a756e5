"""The report of `tritonembed-manager verify` for a model on a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def verified(folder: Path) -> dict[str, Any]:
    """The report, after checking that the direct executor serves the model and that its vectors are right."""
    command = [sys.executable, "-m", "tritonembed_manager", "verify", str(folder), "--device", "cuda", "--json"]
    command += ["--log-verbose", "--gpu-memory-utilization", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["executor"] == "direct", done.stderr[-4000:]
    assert report["right"]
    return report
