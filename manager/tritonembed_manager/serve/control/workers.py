"""The worker processes that share the manager's ports: started, told, listened to, started again."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tritonembed_manager.serve.control.logs import log, warn
from tritonembed_manager.serve.control.restarts import RestartLimits, Restarts
from tritonembed_manager.serve.control.worker_process import Command, Worker, worker_command
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.worker_config import WorkerConfig

LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=0.5, longest_delay=5.0)
"""Without workers nothing is served: they are started again for ever."""
_HOPELESS_STARTS = 3
"""So many in a row that ended before any worker ever listened: none will."""
_DRAIN = {"type": "drain"}


class WorkerPool:
    """All of them.

    first: the lines that a worker is told after its config. hear: gets what they say, with the worker's index.
    gone: gets index and pid of one that ended.
    """

    def __init__(
        self,
        config: WorkerConfig,
        table: LoadTable,
        *,
        first: Callable[[], list[dict[str, Any]]],
        hear: Callable[[int, dict[str, Any]], None],
        gone: Callable[[int, int], None] | None = None,
        command: Command = worker_command,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._table = table
        self._first = first
        self._hear = hear
        self._gone = gone
        self._command = command
        self._environment = os.environ if environment is None else environment
        self._workers: dict[int, Worker] = {}
        self._draining = False
        self._ever_ready = False
        self.restarts = 0
        self.cut = 0
        """Requests that they cut when the time to drain was over."""
        self.died: str | None = None
        """Which of them ended in another way than it should after `drain`, and how."""
        self.why_not: str | None = None
        """Why a worker can't do its work at all."""
        self.news = asyncio.Event()
        """Set whenever a worker became ready or said that it can't."""

    async def run(self) -> None:
        """Keep them running; returns when all have ended after `drain`. Cancelled, it kills them."""
        await asyncio.gather(*(self._keep(index) for index in range(self._config.workers)))

    @property
    def ready(self) -> bool:
        """Whether every worker listens."""
        return len(self._workers) == self._config.workers and all(worker.ready for worker in self._workers.values())

    def figures(self) -> dict[str, int]:
        """For the status."""
        ready = sum(worker.ready for worker in self._workers.values())
        return {"count": self._config.workers, "ready": ready, "restarts": self.restarts}

    def pids(self) -> list[int]:
        """Of those that run."""
        return [worker.pid for worker in self._workers.values()]

    def tell(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """The same to all of them."""
        for worker in self._workers.values():
            worker.tell(line, may_drop=may_drop)

    def drain(self) -> None:
        """They finish what they have; none is started again."""
        self._draining = True
        self.tell(_DRAIN)

    def kill(self) -> None:
        """End them at once; none is started again."""
        self._draining = True
        for worker in self._workers.values():
            worker.kill()

    async def _keep(self, index: int) -> None:
        restarts = Restarts(LIMITS)
        while not self._draining:
            status = await self._live(index)
            if self._draining:
                return
            delay = restarts.died(time.monotonic()) or 0.0
            self.restarts += 1
            if not self._ever_ready and self.restarts >= _HOPELESS_STARTS:
                self.why_not = self.why_not or f"the manager's workers do not start ({_how(status)})"
                self.news.set()
                return
            warn("worker_died", f"worker {index} ended ({_how(status)}); another one starts", worker=index)
            await asyncio.sleep(delay)

    async def _live(self, index: int) -> int:
        worker = self._workers[index] = Worker(self._command, self._table, self._environment)
        listening = asyncio.create_task(
            worker.listen(lambda: self._first_lines(index), lambda line: self._heard(index, line))
        )
        try:
            status = await worker.ended()
            # What it said last is still in the socket.
            await listening
            if self._draining and worker.ready and status:
                self.died = f"worker {index} ended ({_how(status)})"
            return status
        finally:
            worker.kill()
            worker.process.wait()
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            self._workers.pop(index, None)
            self._table.zero(index)
            if self._gone is not None:
                self._gone(index, worker.pid)

    def _first_lines(self, index: int) -> list[dict[str, Any]]:
        config = {"type": "config", **replace(self._config, index=index).to_json()}
        return [config, *self._first(), *([_DRAIN] if self._draining else [])]

    def _heard(self, index: int, line: dict[str, Any]) -> None:
        if line["type"] == "ready":
            self._workers[index].ready = self._ever_ready = True
            log("worker_ready", f"worker {index} listens", worker=index)
            self.news.set()
        elif line["type"] == "failed":
            self.why_not = str(line["why"])
            self.news.set()
        elif line["type"] == "cut":
            # One that somebody else told to drain ends alone, and is replaced.
            self.cut += line["requests"] if self._draining else 0
        else:
            self._hear(index, line)


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"
