"""One client process: its share of a load, over its own connections, in one event loop."""

import asyncio
import itertools
import multiprocessing
import random
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_manager.tune.loadgen.load import Load, Part, RequestFailedError, ThreadUse, Transport, Work

FAULTS_KEPT = 5
MESSAGE_LENGTH = 200
DONE, FAILED = 0, 1
"""Columns of the table that the parent reads for its progress bar."""
PERIOD_S = 0.05
PAUSE_AFTER_FAILURE_S = 0.001
"""Without it a server that refuses at once would get requests without end."""
TASKS = Path("/proc/self/task")
NANOSECONDS = 1e9


def work_off(work: Work, load: Load, number: int, pipe: Connection, table: Any, stop: Any) -> None:
    """The whole life of a client process; `pipe` brings the moment to begin and takes the Part at the end."""
    # Ctrl-C is for the parent: it sets `stop`, and every process returns what it has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # epoll and poll wait in whole milliseconds; select is exact enough for an open loop.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector() if load.rate is not None else None)
    try:
        # The parent may be dead by now.
        with suppress(BrokenPipeError, EOFError):
            pipe.send(loop.run_until_complete(_Client(work, load, number, table, stop).run(pipe)))
    finally:
        loop.close()
    pipe.close()


class _Client:
    def __init__(self, work: Work, load: Load, number: int, table: Any, stop: Any) -> None:
        self._work = work
        self._load = load
        self._number = number
        self._table = table
        self._stop = stop
        self._turns = itertools.count(number * 7919)
        self._begin = self._end = float("inf")
        self._finished: list[float] = []
        self._latencies: list[float] = []
        self._late: list[float] = []
        self._part = Part(np.empty(0), np.empty(0), np.empty(0))

    async def run(self, pipe: Connection) -> Part:
        transport = self._work.sender.open(self._connections(), self._load.timeout)
        try:
            await self._send_one(transport)
            pipe.send("connected")
            if self._load.requests is not None and self._load.rate is None:
                # Exactly that many requests: the warm-up is a load of its own, which ends before they begin.
                self._begin = float("inf")
                self._end = time.perf_counter() + self._load.warm_up
                await self._supervise(self._closed(transport, None))
                pipe.send("warm")
            self._begin = pipe.recv()
            self._end = self._begin + (self._load.duration if self._load.duration is not None else float("inf"))
            use: list[ThreadUse] = []
            loop = self._closed if self._load.rate is None else self._open
            measuring = asyncio.ensure_future(self._measure_use(use))
            await self._supervise(loop(transport, self._load.requests))
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
        finally:
            await transport.close()
        part = self._part
        part.finished, part.latencies = np.array(self._finished), np.array(self._latencies)
        part.late, part.use = np.array(self._late), tuple(use)
        return part

    def _connections(self) -> int:
        return self._work.sender.connections(self._load.concurrency)

    async def _supervise(self, loop: Any) -> None:
        """Wait until the load has ended; once `stop` is set or the parent is dead, drop the requests in flight."""
        task = asyncio.ensure_future(loop)
        parent = multiprocessing.parent_process()
        while not (await asyncio.wait([task], timeout=PERIOD_S))[0]:
            if self._stop.value or (parent is not None and not parent.is_alive()):
                task.cancel()
        if not task.cancelled():
            task.result()

    async def _closed(self, transport: Transport, requests: int | None) -> None:
        left: Iterator[int] = itertools.count() if requests is None else iter(range(requests))

        async def one() -> None:
            while not self._stop.value and time.perf_counter() < self._end and next(left, None) is not None:
                await self._request(transport, time.perf_counter())

        wait = self._begin - time.perf_counter()
        if requests is not None and wait > 0:
            await asyncio.sleep(wait)
        await asyncio.gather(*(one() for _ in range(self._load.concurrency or 1)))

    async def _open(self, transport: Transport, requests: int | None) -> None:
        assert self._load.rate is not None
        first = self._begin - self._load.warm_up
        running: set[asyncio.Task[None]] = set()
        measured = 0
        for arrival in poisson_arrivals(self._load.rate, random.Random(self._load.seed)):
            due = first + arrival
            if self._stop.value or due >= self._end or (requests is not None and measured >= requests):
                break
            measured += due >= self._begin
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif measured % 16 == 0:
                await asyncio.sleep(0)
            task = asyncio.ensure_future(self._request(transport, due))
            running.add(task)
            task.add_done_callback(running.discard)
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()

    async def _request(self, transport: Transport, due: float) -> None:
        """Send one request. due: when it had to be sent; its latency counts from there."""
        turn = next(self._turns)
        pooled = turn % len(self._work.payloads)
        sent = time.perf_counter()
        try:
            raw = await transport.send(self._work.payloads[pooled], turn)
            finished = time.perf_counter()
            fault = self._work.find_fault(pooled, raw) if self._work.find_fault is not None else ""
        except RequestFailedError as error:
            if self._counts(due, time.perf_counter()):
                self._part.errors[error.kind] = self._part.errors.get(error.kind, 0) + 1
                self._part.messages.setdefault(error.kind, str(error)[:MESSAGE_LENGTH])
                self._table[2 * self._number + FAILED] += 1
            await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
            return
        if fault:
            # Also before the clock starts: a wrong vector is one too many.
            self._part.wrong += 1
            if len(self._part.faults) < FAULTS_KEPT:
                self._part.faults.append(fault)
        if self._counts(due, finished):
            self._finished.append(finished)
            self._latencies.append(finished - due)
            self._late.append(sent - due)
            self._part.tokens += self._work.tokens[pooled] if self._work.tokens else 0
            self._part.compared += pooled in self._work.compared
            self._table[2 * self._number + DONE] += 1

    def _counts(self, due: float, finished: float) -> bool:
        """Whether a request is measured.

        Of an open loop: if it was due in the measured time. Of a closed loop: if it ended in it, because at its end
        some are still on their way, as some were at its beginning.
        """
        moment = finished if self._load.rate is None else due
        return self._begin <= moment <= self._end

    async def _measure_use(self, use: list[ThreadUse]) -> None:
        """Append what was used between the beginning and the end of the measured time."""
        await asyncio.sleep(max(0.0, self._begin - time.perf_counter()))
        meter = UseMeter()
        try:
            await asyncio.sleep(max(0.0, min(self._end - time.perf_counter(), 1e6)))
        finally:
            use.append(meter.read())

    async def _send_one(self, transport: Transport) -> None:
        """Make every connection before the clock runs; what comes back does not matter yet."""
        for connection in range(self._connections()):
            try:
                await transport.send(self._work.payloads[connection % len(self._work.payloads)], connection)
            except RequestFailedError:
                return


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Seconds after the start, without end: a Poisson process of `rate` arrivals per second.

    Several processes with a share of the rate each make up one Poisson process of the whole rate.
    """
    moment = 0.0
    while True:
        moment += rng.expovariate(rate)
        yield moment


class UseMeter:
    """How busy the threads of this process are (Linux), from its making to `read`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._threads = _run_and_wait()

    def read(self) -> ThreadUse:
        """What this process used since then."""
        wall = max(time.perf_counter() - self._began, 1e-9)
        used = [seconds - self._threads.get(thread, 0.0) for thread, seconds in _run_and_wait().items()]
        return ThreadUse(time.process_time() - self._cpu, max(used, default=0.0) / wall)


def _run_and_wait() -> dict[str, float]:
    """Seconds that each thread ran or stood in a core's queue: a thread that never sleeps has no time to spare."""
    seconds = {}
    for task in TASKS.glob("*"):
        try:
            ran, waited, _ = (task / "schedstat").read_text().split()
        except (OSError, ValueError):
            continue
        seconds[task.name] = (int(ran) + int(waited)) / NANOSECONDS
    return seconds
