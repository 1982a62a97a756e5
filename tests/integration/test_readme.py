"""The code blocks of README and docs run as written, against the session's server in place of localhost:50050.

Blocks that need a manager, at localhost:8080, run in test_serve_http.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tritonembed_perf.server import RunningServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def found(pattern: str) -> list[tuple[str, str]]:
    """The matches of a pattern, with their pages."""
    return [(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text, re.DOTALL | re.M)]


PYTHON_BLOCKS = [(page, block) for page, block in found(r"```python\n(.*?)```") if "localhost:8080" not in block]
COMMANDS = found(r"^(?:\.venv/bin/)?(tritonembed [^\n]*)$")


@pytest.mark.parametrize(("page", "block"), PYTHON_BLOCKS)
def test_a_python_block_runs_as_written(
    server: RunningServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, block: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(model)
    exec(compile(block.replace(":50050", f":{server.grpc_port}"), page, "exec"), {})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_runs_as_written(server: RunningServer, tmp_path: Path, page: str, command: str) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    command = command.replace("tritonembed ", f"{Path(sys.executable).parent}/tritonembed ", 1)
    command = f"{command} --host 127.0.0.1 --port {server.grpc_port}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{page}: {done.stderr}"
    if "vectors.npy" in command:
        assert (tmp_path / "vectors.npy").stat().st_size > 128


def test_the_pages_have_the_blocks_that_are_tested() -> None:
    assert [page for page, _ in PYTHON_BLOCKS] == [
        "README.md",
        "docs/concepts/embedding-space.md",
        "docs/concepts/executors.md",
        *["docs/guides/clients.md"] * 4,
        "docs/quick-start.md",
    ]
    assert [page for page, _ in COMMANDS] == [*["docs/guides/clients.md"] * 4, "docs/quick-start.md"]
