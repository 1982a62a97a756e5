"""A campaign, from the service's readiness to the last measurement."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from tritonembed_perf.chaos.attackers import Attackers, target_of
from tritonembed_perf.chaos.callers import (
    GoodCaller,
    GrpcStream,
    GrpcUnary,
    HttpBinary,
    KnownVectors,
    OpenAICaller,
    Way,
    make_sentences,
)
from tritonembed_perf.chaos.killers import Killer
from tritonembed_perf.chaos.ledger import CampaignLedger, Harms, percentile
from tritonembed_perf.chaos.service import Service, all_ready
from tritonembed_perf.chaos.watch import Watch, take_footprint

POOL = 192
"""Number of sentences whose vectors are known."""
PROGRESS_S = 5.0
RECOVERY_S = 120.0
"""Seconds after the last harm within which everything has to be ready."""
ALL_KINDS_S = 30.0
"""Seconds by which warming up is longer if some kind of attack has not been sent yet."""
CALM_S = 1.5
"""Seconds without requests before memory is measured."""
_FULL_BATCH = 64


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign does, and for how long.

    seconds: of attacks with harms. warm_up: seconds of attacks without harms, before each of the two measurements of
    memory. callers: good callers, a quarter per API. pause: about the seconds between two harms.
    """

    seed: int
    seconds: float
    warm_up: float
    callers: int
    attackers: int
    pause: float


class Campaign:
    """A campaign can be run once."""

    def __init__(
        self, service: Service, plan: CampaignPlan, attackers: Attackers, ledger: CampaignLedger, harms: Harms
    ) -> None:
        self.service = service
        self.ledger = ledger
        self.harms = harms
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.recovered = False
        self._plan = plan
        self._attackers = attackers
        self._rng = random.Random(plan.seed)
        self._killer = Killer(service, harms, self._rng, plan.pause)
        self._watch = Watch(service, harms, self._killer, ledger, attackers.recent)
        self._began = time.monotonic()
        self._phase = ""

    async def run(self) -> None:
        """Learn the right vectors. Then: attacks alone, attacks with harms, recovery, attacks alone again."""
        await self._all_started()
        self._model = await self._model_name()
        self._known = await self._know()
        async with self._in_background(self._watch.run()), self._in_background(self._progress()):
            await self._requests("warming up", self._plan.warm_up)
            self.start = await self._measure()
            await self._requests("chaos", self._plan.seconds, self._killer.run)
            await self._recover()
            await self._requests("warming up again", self._plan.warm_up)
            self.end = await self._measure()
            await self._watch.look()

    async def _requests(self, phase: str, seconds: float, *more: Callable[..., Coroutine[Any, Any, None]]) -> None:
        self._phase = phase
        until = time.monotonic() + seconds

        def going() -> bool:
            # The buffers of the largest requests are no growth: all kinds come before memory is measured.
            now = time.monotonic()
            return now < until or (now < until + ALL_KINDS_S and not self._attackers.all_sent)

        async with AsyncExitStack() as stack:
            runs = [run(going) for run in more]
            for name, way in self._ways():
                stack.push_async_callback(way.close)
                caller = GoodCaller(name, way, self._known, self.ledger, self.harms, self._rng.getrandbits(48))
                runs.append(caller.run(going))
            for _ in range(self._plan.attackers):
                target = await stack.enter_async_context(
                    target_of("127.0.0.1", self.service.grpc_port, self.service.http_port, self._model)
                )
                runs.append(self._attackers.run(target, self._rng.getrandbits(48), going))
            try:
                await asyncio.gather(*runs)
            finally:
                self._killer.resume_all()

    def _ways(self) -> list[tuple[str, Way]]:
        target, url, model = self.service.target, self.service.url, self._model
        makers: list[tuple[str, Callable[[], Way]]] = [
            ("gRPC", lambda: GrpcUnary(target)),
            ("gRPC stream", lambda: GrpcStream(target)),
            ("HTTP binary", lambda: HttpBinary(url)),
            ("OpenAICaller", lambda: OpenAICaller(url, model)),
        ]
        # Each caller has its own connection, so that together they reach every worker.
        return [(name, make()) for _ in range(max(1, self._plan.callers // len(makers))) for name, make in makers]

    async def _recover(self) -> None:
        self._phase = "recovering"
        until = time.monotonic() + RECOVERY_S
        while not (recovered := self._watch.is_well()) and time.monotonic() < until:
            await asyncio.sleep(0.3)
        self.recovered = recovered
        if not recovered:
            servers = [
                f"{server['id']} is {server['state']}: {server['why']}" for server in self._watch.status["servers"]
            ]
            harmed = [f"{harm.kind} {harm.id}" for harm in self.harms.open()]
            self.ledger.finding(f"not recovered: {'; '.join(servers)}; {'; '.join(harmed)}")

    async def _all_started(self) -> None:
        # The manager prints READY when its first server is ready.
        until = time.monotonic() + RECOVERY_S
        while not all_ready(await self.service.status()) and time.monotonic() < until:
            await asyncio.sleep(0.3)

    async def _measure(self) -> dict[str, Any]:
        self._phase = "calm"
        await asyncio.sleep(CALM_S)
        return take_footprint(self.service)

    async def _model_name(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.service.url}/v1/models") as answer:
            return str((await answer.json())["data"][0]["id"])

    async def _know(self) -> KnownVectors:
        sentences = make_sentences(POOL, self._rng)
        way = GrpcUnary(self.service.target)
        try:
            parts = [
                await way.embed(sentences[first : first + _FULL_BATCH])
                for first in range(0, len(sentences), _FULL_BATCH)
            ]
        finally:
            await way.close()
        return KnownVectors(sentences, np.concatenate(parts))

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            ledger, harms = self.ledger, self.harms
            latencies = sorted(value for way in ledger.ways.values() for value in way.latencies)
            print(
                f"{time.monotonic() - self._began:5.0f} s  {self._phase}: {ledger.answered} of {ledger.sent} answered "
                f"(p99 {percentile(latencies, 99) or 0:.0f} ms), {ledger.lost} lost, {ledger.documented} lost within "
                f"limits, {ledger.wrong} wrong; {ledger.attacked} attacks, {ledger.unexpected.total()} "
                f"unexpected; {len(harms.all)} harms, {len(harms.open())} not over; "
                f"worker at most {ledger.highest_worker_mib:.0f} MiB",
                flush=True,
            )

    @asynccontextmanager
    async def _in_background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        task = asyncio.ensure_future(work)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
