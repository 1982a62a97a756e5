"""The client processes of one measurement, seen from their parent."""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from tritonembed_manager.tune.loadgen.client import work_off
from tritonembed_manager.tune.loadgen.load import GrpcSender, Load, LoadError, Outcome, Part, Work

PERIOD_S = 0.1
LEAD_S = 0.05
"""Before the beginning, so that every process knows its moment in time."""
PATIENCE_S = 120.0
"""Beyond the load's own time: then a client process hangs."""
TIMEOUT_S = 60.0
"""Per request of `run_closed_loop`."""


class Watcher:
    """Callbacks about the measured time, from the parent's own thread. This one does nothing."""

    def begin(self) -> None:
        """The clock starts now."""

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        """done, failed: requests so far. elapsed: seconds."""

    def end(self) -> None:
        """The clock has stopped."""


class Interrupt:
    """Whether Ctrl-C was pressed; inside `catching` it is noted here instead of raised.

    abandoned: set it to end the load at once, with LoadError instead of what was measured so far.
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
) -> Outcome:
    """Keep `concurrency` serialized ModelInferRequests in flight at host:port; answers are not looked at."""
    load = Load(concurrency, None, None, seconds, warm_up, TIMEOUT_S, seed=0)
    return run_clients(Work(GrpcSender(server), tuple(payloads)), load, processes, interrupt=interrupt)


def run_clients(
    work: Work, load: Load, processes: int, watcher: Watcher | None = None, interrupt: Interrupt | None = None
) -> Outcome:
    """Run the load to its end, or until `interrupt`. Raises LoadError when a client process dies or hangs."""
    watcher, interrupt = watcher or Watcher(), interrupt or Interrupt()
    context = multiprocessing.get_context("spawn")
    # Plain memory without locks: every process writes fields of its own.
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
    """A process started here never sees Ctrl-C, not even before it can ignore it."""
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
            while not pipe.poll(PERIOD_S):
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


def _measure(crew: _Crew, load: Load, begin: float, table: Any, watcher: Watcher) -> Outcome:
    end = begin + load.duration if load.duration is not None else None
    expected = load.duration if load.duration is not None else (load.requests or 0) / load.rate if load.rate else None
    limit = None if expected is None else begin + expected + load.timeout + PATIENCE_S
    parts: list[Part] = []
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
        moments = [PERIOD_S, *(moment - now for moment in (begin, end) if moment is not None and moment > now)]
        for pipe in wait(waiting, min(moments)):
            parts.append(crew.receive(pipe))  # type: ignore[arg-type]
            waiting.remove(pipe)  # type: ignore[arg-type]
        watcher.progress(sum(table[0::2]), sum(table[1::2]), max(0.0, time.perf_counter() - begin))
    if begun and not ended:
        watcher.end()
    return Outcome.of(Part.merged(parts), begin, min(end or np.inf, time.perf_counter()), load)
