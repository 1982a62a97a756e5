"""Tries the wheel on every Python of this machine, and prints a table: `python scripts/support_matrix.py [PYTHON...]`.

Each Python gets a bare environment with `tritonembed[manager]` from pip's index. Its manager serves a fake Triton over
gRPC and HTTP, and its client embeds a text. The server's part needs the Triton of a wheel or container, which is for
one Python each: the test suite covers 3.11, and tests/gpu 3.12.
"""

import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving

ROOT = Path(__file__).resolve().parents[1]
OFFERED = ("3.10", "3.11", "3.12", "3.13", "3.14")


def version_of(python: str) -> str | None:
    """The version of a Python, such as 3.12; None if it does not run."""
    try:
        done = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
    except OSError:
        return None
    found = re.match(r"3\.\d+", done.stdout)
    return found[0] if found else None


def attempt(python: str, wheel: Path, folder: Path) -> str:
    """What became of the wheel on this Python: `works`, or the step that failed."""
    bin = folder / "bin"
    steps: dict[str, list[str]] = {
        "a virtual environment": [python, "-m", "venv", str(folder)],
        "the installation": [str(bin / "pip"), "install", "--quiet", "--prefer-binary", f"{wheel}[manager]"],
        "the commands": [str(bin / "tritonembed-manager"), "doctor", "--attach", "--port=29050", "--http-port=29080"],
    }
    for step, command in steps.items():
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            return f"{step} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    program = [str(bin / "tritonembed-manager")]
    try:
        with fake_triton() as fake, serving("--model=m", f"--server={fake.address}", program=program) as manager:
            target = ["--host=127.0.0.1", f"--port={manager.port}"]
            command = [str(bin / "tritonembed"), "embed", *target, "--stream", "a text"]
            done = subprocess.run(command, capture_output=True, text=True, cwd="/")
            if '"embedding"' not in done.stdout:
                return f"the client failed: {done.stderr.strip()}"
            urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/metrics", timeout=20).close()
    except AssertionError as error:
        return f"the manager failed: {str(error).strip().splitlines()[-1]}"
    return "works"


def main(pythons: list[str]) -> int:
    """Print the table. Returns the exit code: 1 if a Python was tried and something failed."""
    found = {version: python for python in pythons if (version := version_of(python)) is not None}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
        subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
        (wheel,) = Path(folder).glob("*.whl")
        for version in sorted({*OFFERED, *found}, key=lambda text: int(text.split(".")[1])):
            python = found.get(version)
            results[version] = attempt(python, wheel, Path(folder) / version) if python else "not run"
            print(f"| {version} | {results[version]} |", flush=True)
    return int(any(result not in ("works", "not run") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [f"python{version}" for version in OFFERED]))
