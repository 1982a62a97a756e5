"""The checks of one server, without a clock: each wait runs the test."""

import asyncio
import contextlib
import socket
import struct

import grpc
import numpy as np
import pytest
from tests.fakes.bad_network import bad_network
from tests.fakes.triton import FakeTriton

from tritonembed_manager.router.control.health import HealthSettings, HealthWatch
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server import probe as probe_module
from tritonembed_manager.server.probe import Described, GrpcProbe, ProbeError

VECTORS = np.ones((3, 4), np.float32)


class Probe:
    """Returns or raises `answer`."""

    def __init__(self):
        self.answer = VECTORS
        self.asked = 0
        self.closed = False
        self.before_answer = lambda: None
        self.copies = 3
        self.told = "aa-float32"
        self.kept = None

    async def vectors(self, timeout):
        self.asked += 1
        self.before_answer()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def space(self, timeout):
        return self.told

    async def quality(self, space, timeout):
        assert space == self.told
        return self.kept

    async def described(self, timeout):
        return Described(self.copies, 512)

    async def close(self):
        self.closed = True


class Case:
    def __init__(self, *, launched=False):
        self.registry = UpstreamRegistry(4, lambda: 0.0, lambda: None)
        self.upstream = self.registry.add("a", "a:1", launched=launched)
        self.probe = Probe()
        self.answered = 0
        self.broken = []
        self.cleared = []
        self.watch = HealthWatch(
            self.registry,
            self.upstream,
            self.probe,
            HealthSettings(interval=5, timeout=10),
            alive=self._alive,
            broken=self.broken.append if launched else None,
            cleared=self.cleared.append,
        )

    def _alive(self):
        found, self.answered = self.answered > 0, 0
        return found


async def test_an_attached_server_joins_with_its_replicas():
    case = Case()
    await case.watch.check()
    assert (case.upstream.state, case.upstream.replicas) == (ServerState.READY, 3)


async def test_an_attached_server_that_is_down_at_first_joins_with_its_replicas():
    case = Case()
    case.probe.answer = ProbeError("nothing listens there")
    await case.watch.check()
    case.probe.answer = VECTORS
    await case.watch.check()
    assert (case.upstream.state, case.upstream.replicas) == (ServerState.READY, 3)


async def test_another_server_at_the_same_address_counts_with_its_own_replicas():
    case = Case()
    await case.watch.check()
    case.probe.answer = ProbeError("nothing listens there")
    await case.watch.check()
    case.probe.answer, case.probe.copies = VECTORS, 5
    await case.watch.check()
    assert (case.upstream.state, case.upstream.replicas) == (ServerState.READY, 5)
    assert case.upstream.view().max_length == 512


async def test_a_late_check_of_a_server_that_answers_requests_is_no_failure():
    case = Case()
    await case.watch.check()
    case.probe.answer = ProbeError("no answer within 10 s", timed_out=True)
    case.probe.before_answer = lambda: setattr(case, "answered", 1)
    await case.watch.check()
    assert case.upstream.state is ServerState.READY
    case.probe.before_answer = lambda: None
    await case.watch.check()
    assert case.upstream.state is ServerState.UNHEALTHY


async def test_a_full_queue_is_no_failure():
    case = Case()
    await case.watch.check()
    case.probe.answer = ProbeError("Exceeds maximum queue size", busy=True)
    await case.watch.check()
    assert case.upstream.state is ServerState.READY


async def test_a_suspect_that_is_healthy_is_cleared():
    case = Case()
    await case.watch.check()
    assert case.cleared == []
    case.watch.check_now()
    await case.watch.check()
    await case.watch.check()
    assert case.cleared == ["a"]


async def test_answers_of_an_earlier_life_do_not_count():
    case = Case(launched=True)
    case.probe.before_answer = lambda: case.registry.down(case.upstream, ServerState.UNHEALTHY, "it died")
    await case.watch.check()
    assert case.upstream.state is ServerState.UNHEALTHY
    case.probe.answer = ProbeError("reset")
    await case.watch.check()
    assert case.upstream.failures == 0


async def test_a_launched_server_that_hangs_is_started_again_after_three_checks():
    case = Case(launched=True)
    await case.watch.check()
    case.probe.answer = ProbeError("no answer within 10 s", timed_out=True)
    for _ in range(2):
        await case.watch.check()
    assert case.broken == []
    await case.watch.check()
    assert case.broken == ["3 checks in a row failed: no answer within 10 s"]


async def test_a_launched_server_that_starts_but_refuses_good_sentences_is_given_up():
    case = Case(launched=True)
    case.probe.answer = ProbeError("it does not listen yet")
    for _ in range(20):
        await case.watch.check()
    assert case.broken == []
    case.probe.answer = ProbeError("no vector today", answered=True)
    for _ in range(10):
        assert case.broken == []
        await case.watch.check()
    assert case.broken == ["the server started, but an inference fails: no vector today"]


async def test_a_server_that_failed_for_good_is_not_checked():
    case = Case(launched=True)
    case.registry.set_state(case.upstream, ServerState.FAILED)
    await case.watch.check()
    assert case.probe.asked == 0


async def test_the_interval_of_checks_depends_on_the_state():
    case = Case()
    pauses = []

    async def wait(event, seconds):
        pauses.append((seconds, case.upstream.state))
        if len(pauses) == 2:
            case.probe.answer = ProbeError("gone")
        if len(pauses) == 4:
            raise asyncio.CancelledError

    case.watch._wait = wait
    with pytest.raises(asyncio.CancelledError):
        await case.watch.run()
    assert pauses == [(5, ServerState.READY)] * 2 + [(1, ServerState.UNHEALTHY)] * 2
    assert case.probe.closed


async def test_a_server_that_goes_down_is_checked_as_often_as_a_starting_server(eventually):
    case = Case(launched=True)
    case.watch._settings = HealthSettings(interval=3600, timeout=10)
    case.registry.set_state(case.upstream, ServerState.READY)
    case.watch.upstream_changed()
    running = asyncio.ensure_future(case.watch.run())
    await eventually(lambda: case.probe.asked == 1)
    case.probe.answer = ProbeError("nothing listens there")
    case.registry.down(case.upstream, ServerState.STARTING, "")
    case.watch.upstream_changed()
    await eventually(lambda: case.probe.asked >= 3)
    case.probe.answer = VECTORS
    await eventually(lambda: case.upstream.state is ServerState.READY)
    running.cancel()


async def test_the_probe_gets_a_servers_vectors_or_the_reason_of_its_failure():
    async with FakeTriton() as fake:
        probe = GrpcProbe(fake.address)
        first = await probe.vectors(5)
        assert first.shape == (3, 8)
        assert np.array_equal(first, await probe.vectors(5))
        assert fake.requests[0].parameters["timeout"].int64_param == 5_000_000
        fake.unhealthy_after = 0
        with pytest.raises(ProbeError, match="is not healthy") as caught:
            await probe.vectors(5)
        assert caught.value.answered
        fake.unhealthy_after, fake.overloaded = None, True
        with pytest.raises(ProbeError) as caught:
            await probe.vectors(5)
        assert caught.value.busy
        fake.overloaded, fake.failure, fake.fail_first = False, (grpc.StatusCode.UNAVAILABLE, "two\nlines"), 1
        with pytest.raises(ProbeError, match=r"^two$") as caught:
            await probe.vectors(5)
        assert not caught.value.answered
        fake.hang()
        with pytest.raises(ProbeError, match=r"no answer within 0\.05 s") as caught:
            await probe.vectors(0.05)
        assert caught.value.timed_out
        fake.release()
        assert await probe.described(5) == Described()
        await fake.crash()
        for _ in range(20):
            with contextlib.suppress(ProbeError):
                await probe.vectors(1)
        with pytest.raises(ProbeError, match=r"^nothing listens there$"):
            await probe.vectors(1)
        await probe.close()


async def test_a_check_after_an_unanswered_check_has_a_new_connection():
    async with FakeTriton() as fake:
        with bad_network(fake.address) as network:
            probe = GrpcProbe(network.address)
            await probe.vectors(5)
            network.vanish_open_ones()
            with pytest.raises(ProbeError) as caught:
                await probe.vectors(0.3)
            assert caught.value.timed_out
            assert (await probe.vectors(5)).shape == (3, 8)
            assert network.connections == 2
            await probe.close()


async def test_a_connection_that_is_made_too_slowly_is_not_taken_for_a_free_port(monkeypatch):
    monkeypatch.setattr(probe_module, "_OPTIONS", [("grpc.min_reconnect_backoff_ms", 100)])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        probe = GrpcProbe(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ProbeError, match=r"^connecting took too long: ") as caught:
            await probe.vectors(30)
        assert not caught.value.answered
        await probe.close()


class Garbling(grpc.GenericRpcHandler):
    """Answers every call with bytes that are no message."""

    def service(self, _details):
        async def answer(_request, _context):
            return b"\xff"

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_an_answer_that_cannot_be_decoded_is_an_error_of_the_check():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Garbling(),))
    probe = GrpcProbe(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    for asked in (probe.vectors(5), probe.infers(5), probe.instances("embedder", 5)):
        with pytest.raises(ProbeError, match="can't be decoded") as caught:
            await asked
        assert caught.value.answered
    assert await probe.described(5) == Described()
    await probe.close()
    await server.stop(None)


async def test_a_check_goes_ahead_of_waiting_requests():
    async with FakeTriton() as fake:
        probe = GrpcProbe(fake.address)
        await probe.vectors(5)
        assert fake.requests[0].parameters["priority"].uint64_param == 1
        await probe.close()


async def test_a_check_is_computed_even_if_its_vectors_are_in_a_cache():
    async with FakeTriton() as fake:
        probe = GrpcProbe(fake.address)
        await probe.vectors(5)
        assert fake.requests[0].parameters["cache"].WhichOneof("parameter_choice") == "bool_param"
        assert not fake.requests[0].parameters["cache"].bool_param
        await probe.close()


async def test_a_check_refused_because_of_its_deadline_counts_as_late():
    async with FakeTriton() as fake:
        probe = GrpcProbe(fake.address)
        fake.failure, fake.fail_first = (grpc.StatusCode.UNAVAILABLE, "it would end after its deadline passed"), 1
        with pytest.raises(ProbeError) as caught:
            await probe.vectors(5)
        assert caught.value.timed_out
        await probe.close()


async def test_the_space_is_read_when_a_server_joins_and_when_it_is_suspected():
    case = Case()
    await case.watch.check()
    assert case.upstream.view().space == "aa-float32"
    case.probe.told = "aa-16bit"
    await case.watch.check()
    assert case.upstream.view().space == "aa-float32"
    case.watch.check_now()
    await case.watch.check()
    assert (case.upstream.view().space, case.upstream.state) == ("aa-16bit", ServerState.READY)
    case.probe.told = "bb-16bit"
    case.watch.check_now()
    await case.watch.check()
    assert case.upstream.state is ServerState.REFUSED
    assert "embedding space bb-16bit instead of aa-float32" in case.upstream.why


@pytest.mark.parametrize(("space", "found"), [("aa-float32", "aa-float32"), ("", "")])
async def test_a_server_tells_its_space_or_does_not_know_of_spaces(space, found):
    async with FakeTriton() as fake:
        fake.space = space
        probe = GrpcProbe(fake.address)
        assert await probe.space(5) == found
        await probe.close()


@pytest.mark.parametrize("space", ["a\r\nx: y", "a b", "x" * 65, "\xe9"])
async def test_a_space_that_cannot_be_a_header_is_a_failed_check(space):
    async with FakeTriton() as fake:
        fake.space = space
        probe = GrpcProbe(fake.address)
        with pytest.raises(ProbeError, match="its embedding space is not a name"):
            await probe.space(5)
        await probe.close()


async def test_what_int8_keeps_is_read_with_the_space_and_ends_with_it():
    case = Case()
    case.probe.told, case.probe.kept = "aa-int8", 0.9831
    await case.watch.check()
    assert case.upstream.view().to_json()["quantization_quality"] == 0.9831
    case.probe.told, case.probe.kept = "aa-16bit", None
    case.watch.check_now()
    await case.watch.check()
    assert (case.upstream.view().space, case.upstream.view().quantization_quality) == ("aa-16bit", None)


@pytest.mark.parametrize(
    ("space", "content", "found"),
    [("aa-int8", struct.pack("<d", 0.9831), 0.9831), ("aa-int8", b"", None), ("aa-float32", b"is not asked", None)],
)
async def test_a_server_in_int8_tells_what_it_keeps_or_does_not_know_of_it(space, content, found):
    async with FakeTriton() as fake:
        fake.quality = content
        probe = GrpcProbe(fake.address)
        assert await probe.quality(space, 5) == found
        assert fake.calls.count("quality") == (space == "aa-int8")
        await probe.close()


@pytest.mark.parametrize("content", [b"0.98", struct.pack("<d", 1.5), struct.pack("<d", float("nan")), bytes(16)])
async def test_what_can_not_be_a_share_is_a_failed_check(content):
    async with FakeTriton() as fake:
        fake.quality = content
        probe = GrpcProbe(fake.address)
        with pytest.raises(ProbeError, match=r"^what its quantization keeps is not a number from 0 to 1$"):
            await probe.quality("aa-int8", 5)
        await probe.close()
