"""The client processes of one measurement, seen from their parent."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from tritonembed_perf.failures import BenchError
from tritonembed_perf.run.client import work_off
from tritonembed_perf.run.job import Load, Part, Work
from tritonembed_perf.run.outcome import Outcome

PERIOD_S = 0.1
LEAD_S = 0.05
"""Between the word to begin and the beginning, so that every process has heard it."""
PATIENCE_S = 120.0
"""Beyond the load's own time: then a client process hangs."""


class Watcher:
    """What is told of the measured time, from the parent's own thread. This one does nothing about it."""

    def begin(self) -> None:
        """It begins now."""

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        """So many requests were answered, or failed, in so many seconds."""

    def end(self) -> None:
        """It ended."""


class Interrupt:
    """Whether Ctrl-C was pressed; in `catching` it is noted here instead of raised."""

    def __init__(self) -> None:
        self.happened = False

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A second Ctrl-C is the ordinary one."""
        before = signal.getsignal(signal.SIGINT)

        def note(_number: int, _frame: Any) -> None:
            self.happened = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def run_clients(work: Work, load: Load, processes: int, watcher: Watcher, interrupt: Interrupt) -> Outcome:
    """Run the load to its end, or until `interrupt`. Raises BenchError when a client process dies or hangs."""
    context = multiprocessing.get_context("spawn")
    # Plain memory without locks: every process writes places of its own.
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
        crew.hear("connected", load.timeout + PATIENCE_S)
        if load.requests is not None and load.rate is None:
            crew.hear("warm", load.warm_up + load.timeout + PATIENCE_S)
            begin = time.perf_counter() + LEAD_S
        else:
            begin = time.perf_counter() + LEAD_S + load.warm_up
        crew.tell(begin)
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
    """What is started here never sees Ctrl-C, not even before it can say that it ignores it."""
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

    def tell(self, begin: float) -> None:
        for pipe in self.pipes:
            pipe.send(begin)

    def hear(self, word: str, limit: float) -> None:
        """Wait until every process has said it."""
        end = time.perf_counter() + limit
        for pipe in self.pipes:
            while not pipe.poll(PERIOD_S):
                self.check_interrupt()
                if time.perf_counter() > end:
                    raise BenchError(f"a client process is not {word} after {limit:.0f} s")
            assert self.receive(pipe) == word

    def receive(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except EOFError:
            raise BenchError("a client process ended in the middle of its work") from None

    def check_interrupt(self) -> None:
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
            raise BenchError("a client process does not end")
        crew.check_interrupt()
        moments = [PERIOD_S, *(moment - now for moment in (begin, end) if moment is not None and moment > now)]
        for pipe in wait(waiting, min(moments)):
            parts.append(crew.receive(pipe))  # type: ignore[arg-type]
            waiting.remove(pipe)  # type: ignore[arg-type]
        watcher.progress(sum(table[0::2]), sum(table[1::2]), max(0.0, time.perf_counter() - begin))
    if begun and not ended:
        watcher.end()
    return Outcome.of(_merge(parts), begin, min(end or np.inf, time.perf_counter()), load)


def _merge(parts: list[Part]) -> Part:
    whole = Part(
        np.concatenate([part.finished for part in parts]),
        np.concatenate([part.latencies for part in parts]),
        np.concatenate([part.late for part in parts]),
    )
    for part in parts:
        whole.tokens += part.tokens
        whole.wrong += part.wrong
        whole.compared += part.compared
        whole.faults += part.faults
        whole.use += part.use
        for kind, count in part.errors.items():
            whole.errors[kind] = whole.errors.get(kind, 0) + count
        whole.messages |= part.messages
    return whole
