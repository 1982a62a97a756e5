"""Reasons, log lines and names reach a terminal without control sequences of a server or a caller."""

import io
import json

import pytest
from rich.console import Console
from tests.unit.manager.router.control.test_registry import OURS, Desk
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.commands.status import table
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.foreground import say
from tritonembed_manager.server.life import ServerLog
from tritonembed_manager.server.probe import ProbeError

EVIL = "\x1b[31mit\x1b]0;title\x07 broke\r\n\x9b2J"
CLEAN = "it broke"


def test_a_servers_reason_is_clean_in_status_log_and_page(caplog):
    """All of them show the registry's reason."""
    desk = Desk()
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    desk.registry.failed(server, ProbeError(EVIL))
    desk.registry.down(desk.add("b"), ServerState.FAILED, EVIL)
    for view in desk.registry.views():
        assert view.why == CLEAN
        assert "\\u001b" not in json.dumps(view.to_json())
    assert "\x1b" not in caplog.text


def test_a_line_of_a_servers_log_is_clean():
    line = f'E1129 12:00:00.000000 1 a.cc:1] "failed to load {EVIL[:-4].rstrip()}"\n'.encode()
    for everything in (False, True):
        log = ServerLog(everything=everything)
        shown = log.take(line) + log.take(b"tritonembed: \x1b[2Jx\n\xff\x9b\x00\n")
        assert shown
        assert all(text.isprintable() for text in shown)
        assert log.reason() == f"failed to load {CLEAN}"


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_of_another_programs_status_is_clean(width):
    figures = {"replicas": 1, "in_flight": 0, "rate": 0.0, "p50_ms": None, "p99_ms": None, "restarts": 0}
    server = {"id": f"[red]{EVIL}", "state": EVIL, "why": EVIL, **figures}
    status = {
        "model": EVIL,
        "policy": EVIL,
        "uptime_s": 1,
        "draining": False,
        "workers": {"ready": 1, "count": 1},
        "warnings": [EVIL],
        "totals": {"servers": 1, "ready": 1, "client_errors": {EVIL: 3}, **figures},
        "servers": [server],
    }
    shown = io.StringIO()
    Console(file=shown, width=width).print(table(status))
    assert all(line.isprintable() for line in shown.getvalue().splitlines())
    # The text is not read as rich's markup either.
    assert "[red]" in shown.getvalue()


@pytest.mark.parametrize("command", [["replica"], ["serve"], ["render", "out"], ["verify"]])
def test_a_models_name_with_codes_is_one_clean_line(command, tmp_path):
    model = f"/no/such\x1b[31m/{EVIL}"
    named = [model] if command == ["verify"] else ["--model", model]
    result = CliRunner().invoke(app, [*(str(tmp_path / word) if word == "out" else word for word in command), *named])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output[:-1].isprintable()


def test_an_option_with_codes_is_one_clean_line():
    result = CliRunner().invoke(app, ["serve", "--server", "host:1", f"--{EVIL}"])
    assert result.exit_code == 2
    assert result.output[:-1].isprintable()


def test_replicas_own_lines_are_clean(capsys):
    say(f"starting tritonserver for {EVIL}")
    assert capsys.readouterr().err == f"tritonembed-manager: starting tritonserver for {CLEAN}\n"
