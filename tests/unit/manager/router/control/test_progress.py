"""A server that computes is busy. Its counters distinguish it from a server that hangs."""

import asyncio

import numpy as np

from tritonembed_manager.router.control.health import LOOKS, HealthSettings, HealthWatch, MetricsProgress, read_counters
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.probe import Described, ProbeError

LATE = ProbeError("no answer within 10 s", timed_out=True)
VECTORS = np.ones((3, 4), np.float32)


class Case:
    """A server whose first check succeeds and whose later checks are late."""

    def __init__(self, *, launched=True, metrics="a:2"):
        self.registry = UpstreamRegistry(4, lambda: 0.0, lambda: None)
        self.upstream = self.registry.add("a", "a:1", launched=launched)
        self.answer = VECTORS
        self.counted = 5.0
        self.grows_by = 0.0
        self.reads = 0
        self.broken = []
        self.delay = 0.0
        progress = MetricsProgress(metrics, read=self._read, sleep=self._sleep)
        self.watch = HealthWatch(
            self.registry,
            self.upstream,
            self,
            HealthSettings(interval=5, timeout=0.04),
            progress=progress,
            broken=self.broken.append if launched else None,
        )

    async def vectors(self, _timeout):
        await asyncio.sleep(self.delay)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def space(self, _timeout):
        return ""

    async def quality(self, _space, _timeout):
        return None

    async def described(self, _timeout):
        return Described()

    async def close(self):
        pass

    async def _read(self, address):
        assert address == "a:2"
        self.reads += 1
        if self.counted is not None:
            self.counted += self.grows_by
        return self.counted

    async def _sleep(self, _seconds):
        pass

    async def be_late(self):
        await self.watch.check()
        self.answer, self.delay = LATE, 0.03
        for _ in range(5):
            await self.watch.check()


async def test_a_launched_server_whose_counters_grow_is_never_restarted():
    case = Case()
    case.grows_by = 1.0
    await case.be_late()
    assert case.broken == []
    assert (case.upstream.state, case.upstream.failures) == (ServerState.READY, 0)


async def test_a_launched_server_whose_counters_stand_still_is_restarted():
    case = Case()
    await case.be_late()
    assert case.broken[0] == "3 checks in a row failed: no answer within 10 s"


async def test_a_server_that_does_not_answer_on_its_metrics_port_counts_as_hung():
    case = Case()
    case.counted = None
    await case.be_late()
    assert case.broken


async def test_without_a_metrics_port_a_late_check_is_a_failure():
    case = Case(metrics=None)
    case.grows_by = 1.0
    await case.be_late()
    assert case.broken
    assert case.reads == 0


async def test_an_attached_server_that_computes_stays_ready():
    case = Case(launched=False)
    case.grows_by = 1.0
    await case.be_late()
    assert case.upstream.state is ServerState.READY


async def test_a_server_that_refuses_is_not_busy():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.answer = ProbeError("no vector today", answered=True)
    await case.watch.check()
    assert case.upstream.state is ServerState.UNHEALTHY


async def test_a_suspected_server_that_computes_is_not_restarted():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.registry.suspected(case.upstream, "the stub died")
    assert case.upstream.state is ServerState.UNHEALTHY
    await case.be_late()
    assert case.broken == []


async def test_metrics_are_not_read_if_a_check_is_answered_in_time():
    case = Case()
    await case.watch.check()
    await case.watch.check()
    assert case.reads == 0


async def test_after_an_immediate_refusal_metrics_are_read_at_least_twice():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.answer = LATE
    await case.watch.check()
    assert (case.upstream.state, case.reads) == (ServerState.READY, 2)
    case.grows_by = 0.0
    case.reads = 0
    await case.watch.check()
    assert (case.upstream.state, case.reads) == (ServerState.UNHEALTHY, LOOKS)


METRICS = b"""HTTP/1.1 200 OK\r
Content-Type: text/plain\r
\r
# HELP tritonembed_tokens_total Tokens embedded
# TYPE tritonembed_tokens_total counter
tritonembed_tokens_total{instance="embedder_0_0"} 1200
tritonembed_tokens_total{instance="embedder_0_1"} 1.5e3
tritonembed_batches_total{instance="embedder_0_0"} 3
tritonembed_tokenized_sentences_total{instance="tokenizer_0_0"} 99999
nv_inference_count{model="embedder"} 7
"""


async def serve(answer):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_counters_of_forward_passes_are_summed_over_all_replicas():
    server, address = await serve(METRICS)
    async with server:
        assert await read_counters(address) == 2703.0


async def test_a_server_without_these_counters_has_no_progress():
    server, address = await serve(b"HTTP/1.1 404 Not Found\r\n\r\n")
    async with server:
        assert await read_counters(address) is None
    assert await read_counters(address) is None
