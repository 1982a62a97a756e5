"""`tritonembed-manager status`: its output, and its errors if no manager answers."""

import copy
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.fakes.threaded import http_server
from tests.unit.manager.router.settings import launch_settings, serve_settings
from typer.testing import CliRunner

from tritonembed_manager.commands import status as status_command
from tritonembed_manager.commands.app import app
from tritonembed_manager.errors import ManagerError
from tritonembed_manager.router.control.plan import ServerPlan
from tritonembed_manager.router.control.settings import ServeSettings
from tritonembed_manager.server.settings import RenderSettings

STATUS = {
    "type": "status",
    "version": "0",
    "model": "m",
    "policy": "random",
    "uptime_s": 3700.0,
    "draining": False,
    "workers": {"count": 2, "ready": 1, "restarts": 0},
    "totals": {
        "in_flight": 7,
        "waiting": 0,
        "requests": 10,
        "errors": 0,
        "rate": 12.5,
        "p50_ms": 1.0,
        "p99_ms": 9.0,
        "replicas": 2,
        "ready": 1,
        "servers": 2,
        "restarts": 3,
    },
    "servers": [
        {
            "id": "server-0",
            "state": "ready",
            "model": "m",
            "replicas": 2,
            "in_flight": 7,
            "rate": 12.5,
            "p50_ms": 1.25,
            "p99_ms": 9.0,
            "restarts": 3,
            "why": "",
        },
        {
            "id": "server-1",
            "state": "failed",
            "model": "m",
            "replicas": 2,
            "in_flight": 0,
            "rate": 0.0,
            "p50_ms": None,
            "p99_ms": None,
            "restarts": 5,
            "why": "it broke",
        },
    ],
}


@pytest.fixture
def manager():
    """A server that answers /status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(STATUS).encode() if self.path == "/status" else b"{"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http_server(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


def show(monkeypatch, status, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(status_command, "fetch", lambda _, **_more: status)
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0
    return result.output.splitlines()


@pytest.mark.parametrize("width", [80, 140])
def test_the_status_is_a_table_of_the_servers(manager, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["status", "--manager", manager])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "m: random over 2 servers, 1 of 2 workers, up 1 h 1 min"
    assert " ".join(lines[1].split()) == "server state replicas in flight rate /s p50 ms p99 ms restarts"
    assert lines[2].split() == ["server-0", "ready", "2", "7", "12.5", "1.2", "9.0", "3"]
    assert lines[3].split() == ["server-1", "failed", "2", "0", "0.0", "–", "–", "5"]
    assert lines[4].split() == ["in", "all", "1", "ready", "2", "7", "12.5", "1.0", "9.0", "3"]
    assert lines[5] == "server-1 is failed: it broke"


def test_tokens_per_second_and_errors_by_code_are_under_the_table(monkeypatch):
    status = copy.deepcopy(STATUS)
    status["totals"] |= {"tokens": 5, "token_rate": 12345.6, "client_errors": {"INVALID_ARGUMENT": 1200}}
    status["totals"] |= {"service_errors": {"RESOURCE_EXHAUSTED": 1, "UNAVAILABLE": 3}}
    assert show(monkeypatch, status, 80)[5:8] == [
        "12,346 tokens/s",
        "service errors: RESOURCE_EXHAUSTED 1, UNAVAILABLE 3",
        "client errors: INVALID_ARGUMENT 1,200",
    ]


def test_the_status_warns_of_servers_without_a_reference(monkeypatch):
    warning = "the vectors are not compared with a reference (--no-reference)"
    assert f"warning: {warning}" in show(monkeypatch, {**STATUS, "warnings": [warning]}, 100)

    def settings(reference: str | None) -> ServeSettings:
        plan = ServerPlan(RenderSettings("m", reference=reference), 1)
        return serve_settings(launch=launch_settings([plan]))

    assert settings("off").warnings == [warning]
    assert settings(None).warnings == []


def test_long_names_and_reasons_do_not_break_the_table_at_80_columns(monkeypatch):
    status = copy.deepcopy(STATUS)
    reason = "its vectors differ from those of the other servers: cosine 0.12 for a sentence that all of them were sent"
    status["servers"][1] |= {"id": "embeddings-1.example:8001", "state": "refused", "why": reason, "rate": 12345.6}
    lines = show(monkeypatch, status, 80)
    assert max(map(len, lines)) <= 80
    for whole in ("replicas", "in flight", "rate /s", "p50 ms", "p99 ms", "restarts"):
        assert whole in lines[1]
    assert "12345.6" in "\n".join(lines)
    assert f"embeddings-1.example:8001 is refused: {reason}" in " ".join(lines)


def test_the_status_for_scripts_is_json(manager):
    result = CliRunner().invoke(app, ["status", "--json"], env={"TRITONEMBED_MANAGER": manager})
    assert json.loads(result.output) == STATUS


def test_a_manager_that_is_not_there_is_one_line(unused_tcp_port):
    result = CliRunner().invoke(app, ["status", "--manager", f"127.0.0.1:{unused_tcp_port}"])
    assert result.exit_code == 1
    assert result.output == (
        f"tritonembed-manager: no manager answers at 127.0.0.1:{unused_tcp_port}: Connection refused\n"
    )


@contextmanager
def answering(raw):
    """A server of another kind, which sends `raw`. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(raw)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00\x3f\xff\xff",
        b"HTTP/1.0 200 OK\r\n\r\n<html>\x1b[2J",
        b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe\xfd",
    ],
)
def test_the_answer_of_another_port_is_not_printed(raw):
    with answering(raw) as address:
        result = CliRunner().invoke(app, ["status", "--manager", address])
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line.endswith("the program there is not a manager, or this is not its --http-port")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_watch_goes_on_while_the_manager_is_away(options, monkeypatch):
    answers = iter([STATUS, ManagerError("no manager answers"), STATUS])

    def fetch(_, **_more):
        answer = next(answers, None)
        if answer is None:
            raise KeyboardInterrupt
        if isinstance(answer, ManagerError):
            raise answer
        return answer

    monkeypatch.setattr(status_command, "fetch", fetch)
    monkeypatch.setattr(status_command, "_EVERY_S", 0)
    result = CliRunner().invoke(app, ["status", "--watch", *options])
    assert next(answers, None) is None
    assert result.exit_code == 130
    if options:
        assert [json.loads(line) for line in result.stdout.splitlines()] == [STATUS, STATUS]
        assert "no manager answers" in result.stderr
