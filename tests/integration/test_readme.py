"""The code blocks of README and docs run as written, against a server of the tests in place of localhost:50050.

Blocks that need a manager, at localhost:8080, run in test_serve_http.py; jobs in Ray in tests/slow/test_bulk_guide.py.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.serve import running_server

from tritonembed_perf.families import rerankers
from tritonembed_perf.server import RunningServer

RERANK = "docs/guides/rerank.md"
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def found(pattern: str) -> list[tuple[str, str]]:
    """The matches of a pattern, with their pages."""
    return [(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text, re.DOTALL | re.M)]


PYTHON_BLOCKS = [(page, block) for page, block in found(r"```python\n(.*?)```") if "localhost:8080" not in block]
COMMANDS = found(r"^(?:\.venv/bin/)?(tritonembed (?!bulk|compare-spaces)[^\n]*)$")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a small reranker."""
    folder = tmp_path_factory.mktemp("reranker")
    rerankers.ce_bert(folder)
    # Imported faster than vLLM.
    options = ["--device", "cpu", "--workers", "1", "--executor", "transformers", "--no-reference"]
    with running_server(str(folder), options) as running:
        yield running


@pytest.fixture
def shown(request: pytest.FixtureRequest, page: str) -> RunningServer:
    """The server for the blocks of a page."""
    found: RunningServer = request.getfixturevalue("reranker" if page == RERANK else "server")
    return found


@pytest.mark.parametrize(("page", "block"), PYTHON_BLOCKS)
def test_a_python_block_runs_as_written(
    shown: RunningServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, block: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(model)
    exec(compile(block.replace(":50050", f":{shown.grpc_port}"), page, "exec"), {})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_runs_as_written(shown: RunningServer, tmp_path: Path, page: str, command: str) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    command = command.replace("tritonembed ", f"{Path(sys.executable).parent}/tritonembed ", 1)
    command = f"{command} --host 127.0.0.1 --port {shown.grpc_port}"
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
        RERANK,
        *["docs/guides/sparse-and-multi-vector.md"] * 2,
        "docs/quick-start.md",
    ]
    assert [page for page, _ in COMMANDS] == [
        *["docs/guides/clients.md"] * 4,
        RERANK,
        *["docs/guides/sparse-and-multi-vector.md"] * 2,
        "docs/quick-start.md",
    ]
