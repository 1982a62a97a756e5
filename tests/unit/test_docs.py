"""Options and metrics in README and docs are those of the code."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry

from tritonembed.cli.app import app as client_app
from tritonembed_manager.commands.app import app as manager_app
from tritonembed_manager.router.data.metrics import WorkerMetrics
from tritonembed_perf.commands import app as bench_app

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "perf/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = {
    name: command
    for app in (client_app, manager_app, bench_app)
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
VLLM = {"--dtype", "--quantization", "--max-model-len"}
LINE = re.compile(rf"\btritonembed(?:-manager|-bench)? +({'|'.join(COMMANDS)})\b(.*)")


def command_lines() -> list[tuple[str, str, str]]:
    """Page, command and its arguments, of every code block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            lines = LINE.findall(block.replace("\\\n", " "))
            found += [(page.relative_to(ROOT).as_posix(), *line) for line in lines]
    return found


@pytest.mark.parametrize(("page", "command", "arguments"), command_lines())
def test_a_command_line_has_options_that_exist(page: str, command: str, arguments: str) -> None:
    options = {name for parameter in COMMANDS[command].params for name in parameter.opts} | VLLM
    used = set(re.findall(r"(?<= )--[a-z][a-z-]*", arguments.partition(" -- ")[0]))
    assert used <= options, page


def test_the_pages_have_command_lines() -> None:
    assert len(command_lines()) > 25


def test_the_first_page_is_read_in_three_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_metric_of_the_manager_is_on_its_page() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    names = [metric.name + "_total" * (metric.type == "counter") for metric in registry.collect()]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_route_is_on_its_page() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "manager").rglob("*.py")]
    routes = [route for text in sources for route in re.findall(r'web\.(?:get|post)\(\s*"(/[^"{:]*)', text)]
    page = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    assert len(routes) > 10
    assert [route for route in routes if route not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = re.findall(r"python -m (tritonembed_[\w.]+)", text)
    assert [module for module in modules if find_spec(module) is None] == []


@pytest.mark.parametrize("lock", ["docs.lock", "deploy.lock"])
def test_a_lock_of_tools_has_hashes_and_replaces_nothing_that_serves(lock: str) -> None:
    lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", pin)] == []
    served = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert [pin for pin in pins if f"\n{pin.partition('==')[0]}==" in served.lower()] == []
