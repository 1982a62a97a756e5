"""The client processes of a measurement and their parent.

A client process sends its share over its own connections, in one event loop. The parent starts the processes, gives
them the moment to begin, counts their requests, and puts their parts together.
"""

import asyncio
import itertools
import multiprocessing
import random
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_manager.tune.loadgen.load import (
    GrpcSender,
    Load,
    LoadError,
    LoadResult,
    LoadTransport,
    RequestFailedError,
    Samples,
    ThreadUse,
    Work,
)

FAULTS_KEPT = 5
MESSAGE_LENGTH = 200
DONE, FAILED = 0, 1
"""Columns of the table that the parent reads for its progress bar."""
COUNT_EVERY_S = 0.05
PAUSE_AFTER_FAILURE_S = 0.001
"""The pause after a failed request. Without it, a server that refuses at once would get requests without end."""
TASKS = Path("/proc/self/task")
NANOSECONDS = 1e9


def work_off(work: Work, load: Load, number: int, pipe: Connection, table: Any, stop: Any) -> None:
    """The whole life of a client process. `pipe` brings the moment to begin, and at the end takes the Part."""
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
        self._part = Samples(np.empty(0), np.empty(0), np.empty(0))

    async def run(self, pipe: Connection) -> Samples:
        transport = self._work.sender.open(self._connections(), self._load.timeout)
        try:
            await self._send_one(transport)
            pipe.send("connected")
            if self._load.requests is not None and self._load.rate is None:
                # A fixed number of requests: the warm-up is a separate load, which ends before they begin.
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
        while not (await asyncio.wait([task], timeout=COUNT_EVERY_S))[0]:
            if self._stop.value or (parent is not None and not parent.is_alive()):
                task.cancel()
        if not task.cancelled():
            task.result()

    async def _closed(self, transport: LoadTransport, requests: int | None) -> None:
        left: Iterator[int] = itertools.count() if requests is None else iter(range(requests))

        async def one() -> None:
            while not self._stop.value and time.perf_counter() < self._end and next(left, None) is not None:
                await self._request(transport, time.perf_counter())

        wait = self._begin - time.perf_counter()
        if requests is not None and wait > 0:
            await asyncio.sleep(wait)
        await asyncio.gather(*(one() for _ in range(self._load.concurrency or 1)))

    async def _open(self, transport: LoadTransport, requests: int | None) -> None:
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

    async def _request(self, transport: LoadTransport, due: float) -> None:
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
            # Also before the clock starts: no wrong vector is acceptable.
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

        In an open loop it is measured if it was due in the measured time. In a closed loop it is measured if it ended
        in that time: some requests are on their way at the end, as some were at the beginning.
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

    async def _send_one(self, transport: LoadTransport) -> None:
        """Make every connection before the clock runs; answers are ignored."""
        for connection in range(self._connections()):
            try:
                await transport.send(self._work.payloads[connection % len(self._work.payloads)], connection)
            except RequestFailedError:
                return


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Endless moments of a Poisson process of `rate` arrivals per second, in seconds after the start.

    Several processes with a share of the rate each add up to a Poisson process of the whole rate.
    """
    moment = 0.0
    while True:
        moment += rng.expovariate(rate)
        yield moment


class UseMeter:
    """How busy the threads of this process are (Linux), from the object's creation to `read`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._threads = _run_and_wait()

    def read(self) -> ThreadUse:
        """The process's use since the object's creation."""
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


LOOK_EVERY_S = 0.1
LEAD_S = 0.05
"""Seconds before the beginning, so that every process learns the moment in time."""
PATIENCE_S = 120.0
"""Seconds beyond the load's own time after which a client process counts as hung."""
TIMEOUT_S = 60.0
"""Seconds per request of `run_closed_loop`."""


class Watcher:
    """Callbacks about the measured time, from the parent's own thread. This one does nothing."""

    def begin(self) -> None:
        """The clock starts now."""

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        """done, failed: requests so far. elapsed: seconds."""

    def end(self) -> None:
        """The clock has stopped."""


class Interrupt:
    """Whether Ctrl-C was pressed; within `catching` it is noted here instead of raised.

    abandoned: set it to end the load at once, with LoadError instead of the measurements so far.
    """

    def __init__(self) -> None:
        self.happened = False
        self.abandoned = False

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A second Ctrl-C raises KeyboardInterrupt again."""
        before = signal.getsignal(signal.SIGINT)

        def note(_number: int, _frame: Any) -> None:
            self.happened = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def run_closed_loop(
    server: str,
    payloads: Sequence[bytes],
    concurrency: int,
    processes: int,
    seconds: float,
    warm_up: float = 1.0,
    interrupt: Interrupt | None = None,
) -> LoadResult:
    """Keep `concurrency` serialized ModelInferRequests in flight at host:port; answers are not checked."""
    load = Load(concurrency, None, None, seconds, warm_up, TIMEOUT_S, seed=0)
    return run_clients(Work(GrpcSender(server), tuple(payloads)), load, processes, interrupt=interrupt)


def run_clients(
    work: Work, load: Load, processes: int, watcher: Watcher | None = None, interrupt: Interrupt | None = None
) -> LoadResult:
    """Run the load to its end, or until `interrupt`. Raises LoadError if a client process dies or hangs."""
    watcher, interrupt = watcher or Watcher(), interrupt or Interrupt()
    context = multiprocessing.get_context("spawn")
    # Plain memory without locks: no two processes write the same fields.
    table = context.RawArray("q", 2 * processes)
    stop = context.RawValue("b", 0)
    pipes: list[Connection] = []
    children = []
    try:
        for number, share in enumerate(load.shares(processes)):
            ours, theirs = context.Pipe()
            child = context.Process(target=work_off, args=(work, share, number, theirs, table, stop), daemon=True)
            with _interrupts_blocked():
                child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        crew = _Crew(pipes, stop, interrupt)
        crew.wait_for("connected", load.timeout + PATIENCE_S)
        if load.requests is not None and load.rate is None:
            crew.wait_for("warm", load.warm_up + load.timeout + PATIENCE_S)
            begin = time.perf_counter() + LEAD_S
        else:
            begin = time.perf_counter() + LEAD_S + load.warm_up
        crew.send(begin)
        return _measure(crew, load, begin, table, watcher)
    finally:
        stop.value = 1
        for child in children:
            child.join(1)
            if child.is_alive():
                child.kill()
                child.join()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started within never receive Ctrl-C, not even before they can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Crew:
    def __init__(self, pipes: list[Connection], stop: Any, interrupt: Interrupt) -> None:
        self.pipes = pipes
        self._stop = stop
        self._interrupt = interrupt

    def send(self, begin: float) -> None:
        for pipe in self.pipes:
            pipe.send(begin)

    def wait_for(self, word: str, limit: float) -> None:
        """Wait until every process has sent it."""
        end = time.perf_counter() + limit
        for pipe in self.pipes:
            while not pipe.poll(LOOK_EVERY_S):
                self.check_interrupt()
                if time.perf_counter() > end:
                    raise LoadError(f"a client process is not {word} after {limit:.0f} s")
            assert self.receive(pipe) == word

    def receive(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except EOFError:
            raise LoadError("a client process ended in the middle of its work") from None

    def check_interrupt(self) -> None:
        if self._interrupt.abandoned:
            raise LoadError("the load was abandoned")
        if self._interrupt.happened:
            self._stop.value = 1


def _measure(crew: _Crew, load: Load, begin: float, table: Any, watcher: Watcher) -> LoadResult:
    end = begin + load.duration if load.duration is not None else None
    expected = load.duration if load.duration is not None else (load.requests or 0) / load.rate if load.rate else None
    limit = None if expected is None else begin + expected + load.timeout + PATIENCE_S
    parts: list[Samples] = []
    waiting = list(crew.pipes)
    begun = ended = False
    while waiting:
        now = time.perf_counter()
        if not begun and now >= begin:
            begun = True
            watcher.begin()
        if begun and not ended and end is not None and now >= end:
            ended = True
            watcher.end()
        if limit is not None and now > limit:
            raise LoadError("a client process does not end")
        crew.check_interrupt()
        moments = [LOOK_EVERY_S, *(moment - now for moment in (begin, end) if moment is not None and moment > now)]
        for pipe in wait(waiting, min(moments)):
            parts.append(crew.receive(pipe))  # type: ignore[arg-type]
            waiting.remove(pipe)  # type: ignore[arg-type]
        watcher.progress(sum(table[0::2]), sum(table[1::2]), max(0.0, time.perf_counter() - begin))
    if begun and not ended:
        watcher.end()
    return LoadResult.of(Samples.merged(parts), begin, min(end or np.inf, time.perf_counter()), load)
