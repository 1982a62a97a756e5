"""A server that computes is busy: its counters tell it from one that hangs."""

import asyncio

import numpy as np

from tritonembed_manager.serve.control.health import HealthSettings, HealthWatch
from tritonembed_manager.serve.control.probe import ProbeError
from tritonembed_manager.serve.control.progress import LOOKS, MetricsProgress, read_counters
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.model import ServerState

LATE = ProbeError("no answer within 10 s", timed_out=True)
VECTORS = np.ones((3, 4), np.float32)


class Case:
    """A server that gave its vectors once, and whose checks are late from then on."""

    def __init__(self, *, launched=True, metrics="a:2"):
        self.roster = Roster(4, lambda: 0.0, lambda: None)
        self.member = self.roster.add("a", "a:1", launched=launched)
        self.answer = VECTORS
        self.counted = 5.0
        self.grows_by = 0.0
        self.reads = 0
        self.broken = []
        self.delay = 0.0
        progress = MetricsProgress(metrics, read=self._read, sleep=self._sleep)
        self.watch = HealthWatch(
            self.roster,
            self.member,
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

    async def replicas(self, _timeout):
        return 1

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


async def test_a_launched_server_whose_counters_grow_is_never_started_again():
    case = Case()
    case.grows_by = 1.0
    await case.be_late()
    assert case.broken == []
    assert (case.member.state, case.member.failures) == (ServerState.READY, 0)


async def test_a_launched_server_whose_counters_stand_still_is_started_again():
    case = Case()
    await case.be_late()
    assert case.broken[0] == "3 checks in a row failed: no answer within 10 s"


async def test_a_server_without_an_answer_on_its_metrics_port_hangs():
    case = Case()
    case.counted = None
    await case.be_late()
    assert case.broken


async def test_without_a_metrics_port_late_is_failed():
    case = Case(metrics=None)
    case.grows_by = 1.0
    await case.be_late()
    assert case.broken
    assert case.reads == 0


async def test_an_attached_server_that_computes_stays_ready():
    case = Case(launched=False)
    case.grows_by = 1.0
    await case.be_late()
    assert case.member.state is ServerState.READY


async def test_a_server_that_refuses_is_not_busy():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.answer = ProbeError("no vector today", answered=True)
    await case.watch.check()
    assert case.member.state is ServerState.UNHEALTHY


async def test_a_suspected_server_that_computes_is_not_started_again():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.roster.suspected(case.member, "the stub died")
    assert case.member.state is ServerState.UNHEALTHY
    await case.be_late()
    assert case.broken == []


async def test_a_prompt_answer_costs_no_look_at_the_metrics():
    case = Case()
    await case.watch.check()
    await case.watch.check()
    assert case.reads == 0


async def test_a_refusal_at_once_has_its_progress_looked_at_twice():
    case = Case()
    case.grows_by = 1.0
    await case.watch.check()
    case.answer = LATE
    await case.watch.check()
    assert (case.member.state, case.reads) == (ServerState.READY, 2)
    case.grows_by = 0.0
    case.reads = 0
    await case.watch.check()
    assert (case.member.state, case.reads) == (ServerState.UNHEALTHY, LOOKS)


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


async def test_what_forward_passes_add_to_is_read_over_all_replicas():
    server, address = await serve(METRICS)
    async with server:
        assert await read_counters(address) == 2703.0


async def test_a_server_without_these_counters_tells_nothing():
    server, address = await serve(b"HTTP/1.1 404 Not Found\r\n\r\n")
    async with server:
        assert await read_counters(address) is None
    assert await read_counters(address) is None
