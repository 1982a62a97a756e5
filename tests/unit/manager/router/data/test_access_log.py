"""A line per request with OpenTelemetry's names, and ids that callers choose within limits."""

import asyncio
import json

import grpc
import pytest
from tests.fakes.data_plane import data_plane

from tritonembed_manager.router.data.access_log import AccessLog, enter
from tritonembed_manager.router.interfaces import Admission, Caller, DispatchError

VIA = {"http.request.method": "POST", "http.route": "/v1/embeddings"}


@pytest.mark.parametrize(
    ("given", "is_logged", "kept"),
    [
        ("trace-7/a:b", False, True),
        ("x" * 128, False, True),
        ("x" * 129, False, False),
        ("two words", True, False),
        ('new\nline {"code":0}', True, False),
        ("é", True, False),
        ("", True, False),
    ],
)
def test_an_id_is_kept_if_it_is_short_and_visible_ascii_and_else_replaced(given, is_logged, kept):
    found = enter(given, VIA, is_logged=is_logged)
    assert (found == given) == kept
    assert kept or (len(found) == 32 and found.isalnum())


def test_a_request_without_an_id_gets_one_only_for_the_log():
    assert enter(None, VIA, is_logged=False) == ""
    assert enter(None, VIA, is_logged=True) != enter(None, VIA, is_logged=True)


async def test_a_line_has_what_became_of_the_request_and_not_its_text(tmp_path):
    log = AccessLog(tmp_path / "log", lambda ensemble: f"{ensemble}'s name", lambda: "7f" * 16, lambda: 1764540000.25)
    async with data_plane(1) as plane:
        plane.dispatcher.meter.on_end = log.ended
        plane.fakes[0].latency = 0.05
        enter("id-1", VIA, is_logged=True)
        caller = Caller("acme", is_tenant=True)
        await plane.infer(b"a secret text", b"two", metadata=[("authorization", "Bearer secret")], caller=caller)
        enter(None, {"rpc.system": "grpc"}, is_logged=True)
        plane.fakes[0].failure = (grpc.StatusCode.INVALID_ARGUMENT, "secret")
        plane.fakes[0].fail_first = 1
        with pytest.raises(DispatchError):
            await plane.infer(caller=Caller("ipv4:10.0.0.7:40312"))
        plane.dispatcher.refused(grpc.StatusCode.UNAUTHENTICATED)
    lines = log.take()
    log.write(lines)
    log.close()
    written = (tmp_path / "log").read_text(encoding="utf-8")
    assert "secret" not in written
    assert "10.0.0.7" not in written
    first, second, third = map(json.loads, written.splitlines())
    times = {name: first.pop(f"tritonembed.{name}") for name in ("duration_s", "wait_s", "server_s")}
    assert times["duration_s"] >= times["wait_s"] + times["server_s"]
    assert times["server_s"] >= 0.05 > times["wait_s"] >= 0
    assert first == {
        "timestamp": "2025-11-30T22:00:00.250+00:00",
        "tritonembed.request.id": "id-1",
        **VIA,
        "trace_id": "7f" * 16,
        "tritonembed.tenant": "acme",
        "gen_ai.request.model": "embedding's name",
        "tritonembed.server": "0",
        "rpc.grpc.status_code": 0,
        "tritonembed.code": "OK",
        "tritonembed.sentences": 2,
        "gen_ai.usage.input_tokens": 4,
    }
    assert (second["tritonembed.code"], second["rpc.grpc.status_code"], second["rpc.system"]) == (
        "INVALID_ARGUMENT",
        3,
        "grpc",
    )
    assert third["tritonembed.code"] == "UNAUTHENTICATED"
    assert "tritonembed.tenant" not in third


def test_lines_that_nobody_writes_are_counted_instead_of_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.data.access_log._MOST_LINES", 3)
    log = AccessLog(tmp_path / "log")
    for _ in range(5):
        log.ended(Admission(0.0, Caller("")), grpc.StatusCode.OK, 0.1)
    assert [json.loads(line).get("tritonembed.lines_left_out") for line in log.take()] == [None, None, None, 2]
    assert log.take() == []


async def test_requests_at_the_same_time_have_their_own_ids(tmp_path):
    log = AccessLog(tmp_path / "log")
    async with data_plane(1) as plane:
        plane.dispatcher.meter.on_end = log.ended

        async def one(number):
            enter(f"id-{number}", VIA, is_logged=True)
            await plane.infer(b"%d" % number)

        await asyncio.gather(*(asyncio.ensure_future(one(number)) for number in range(20)))
    assert {json.loads(line)["tritonembed.request.id"] for line in log.take()} == {f"id-{n}" for n in range(20)}


async def test_without_a_log_nothing_is_noted():
    async with data_plane(1) as plane:
        assert plane.dispatcher.meter.on_end is None
        await plane.infer()
