"""Encode calls in flight by request_id, so that Abort finds them in this worker and in the others.

An Abort may arrive at another worker than its Encode. The worker then asks the others over its line to the parent. The
parent passes such lines on to all workers, including the worker that sent them:

    {"type": "abort", "request_id": id, "asked": key}         end the calls in flight under that id
    {"type": "aborted", "asked": key, "found": bool}           the answer of each other worker
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_PATIENCE_S = 1.0
_LONGEST_ID = 1000
"""A longer id is looked for in one worker only, so that it can't flood the lines to the others."""


class Aborted(Exception):
    """An Abort ended the wait for an answer."""


@dataclass(eq=False, slots=True)
class _Call:
    task: "asyncio.Task[Any]"
    aborted: bool = False


@dataclass(eq=False, slots=True)
class _Question:
    waiting: int
    answer: "asyncio.Future[bool]"


class Aborts:
    """The calls of one worker.

    send: sends a line to the parent; None if there are no other workers. others: how many other workers answer.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None] | None = None, others: int = 0) -> None:
        self._tell = send
        self._others = others if send else 0
        self._calls: dict[str, set[_Call]] = {}
        self._questions: dict[str, _Question] = {}
        self._name = uuid.uuid4().hex
        self._asked = 0

    def __len__(self) -> int:
        """Number of ids in flight."""
        return len(self._calls)

    @contextmanager
    def in_flight(self, request_id: str) -> Iterator[None]:
        """While the block runs, `abort` with that id cancels the current task, and the block raises Aborted."""
        task = asyncio.current_task()
        assert task is not None
        call = _Call(task)
        self._calls.setdefault(request_id, set()).add(call)
        try:
            yield
        except asyncio.CancelledError:
            if call.aborted and not _cancelled_by_another(task):
                raise Aborted from None
            raise
        finally:
            calls = self._calls[request_id]
            calls.discard(call)
            if not calls:
                del self._calls[request_id]

    def abort(self, request_id: str) -> bool:
        """Cancel every call under that id in this worker. Returns whether there was one."""
        calls = self._calls.get(request_id, ())
        for call in calls:
            if not call.aborted:
                call.aborted = True
                call.task.cancel()
        return bool(calls)

    async def abort_everywhere(self, request_id: str) -> bool:
        """Cancel every call under that id in all workers. Returns whether there was one."""
        found = self.abort(request_id)
        if not self._others or self._tell is None or len(request_id) > _LONGEST_ID:
            return found
        self._asked += 1
        key = f"{self._name}.{self._asked}"
        question = _Question(self._others, asyncio.get_running_loop().create_future())
        self._questions[key] = question
        try:
            self._tell({"type": "abort", "request_id": request_id, "asked": key})
            # A worker that is just being started again does not answer.
            return found or await asyncio.wait_for(question.answer, _PATIENCE_S)
        except asyncio.TimeoutError:
            return False
        finally:
            del self._questions[key]

    def receive(self, line: dict[str, Any]) -> None:
        """Handle a line of either type, from the parent."""
        key = line["asked"]
        if line["type"] == "abort":
            if self._tell is not None and not key.startswith(self._name):
                self._tell({"type": "aborted", "asked": key, "found": self.abort(line["request_id"])})
            return
        question = self._questions.get(key)
        if question is not None and not question.answer.done():
            question.waiting -= 1
            if line["found"] or not question.waiting:
                question.answer.set_result(bool(line["found"]))


def _cancelled_by_another(task: "asyncio.Task[Any]") -> bool:
    """Whether the task was cancelled more than once: its client went away, too. Python 3.10 does not count."""
    uncancel: Callable[[], int] | None = getattr(task, "uncancel", None)
    return uncancel is not None and uncancel() > 0
