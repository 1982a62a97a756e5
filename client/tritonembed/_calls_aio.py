"""Asyncio requests to the client's servers: one, or several of which another answers when one breaks (see _calls)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import grpc
import grpc.aio

from ._errors import error_from_status
from ._metadata import Pairs
from ._request import Request
from ._router import Attempt, Router, Server


class DirectCalls:
    """All requests to one server."""

    def __init__(self, stub: Any) -> None:
        self._infer = stub.ModelInfer

    def send(self, request: Request, pairs: Pairs) -> Any:
        """Start a request; gives gRPC's call."""
        return self._infer(request.message, timeout=request.timeout, metadata=pairs)


class RoutedCalls:
    """Each request to one of several servers, and to others if that one breaks."""

    def __init__(self, router: Router, stubs: list[Any]) -> None:
        self._router = router
        self._infer = [stub.ModelInfer for stub in stubs]

    def send(self, request: Request, pairs: Pairs) -> Any:
        """Start a request; gives what looks like gRPC's call."""
        return RoutedCall(self._router, self._infer, request, pairs)


class RoutedCall:
    """As much of grpc.aio.Call as the pipeline uses, for a request that may be at one server after the other."""

    def __init__(self, router: Router, infer: list[Any], request: Request, pairs: Pairs) -> None:
        self._router = router
        self._infer = infer
        self._request = request
        self._pairs = pairs
        self._tried: list[Server] = []
        self._attempt, self._call = self._start()
        self._task = asyncio.create_task(self._follow())
        # Not in the task itself: one that is cancelled before its first step never runs.
        self._task.add_done_callback(self._ended)

    def _start(self) -> tuple[Attempt, Any]:
        attempt = self._router.begin(self._request.work, self._tried)
        self._tried.append(attempt.server)
        request = self._request
        try:
            infer = self._infer[attempt.server.index]
            return attempt, infer(request.message, timeout=request.timeout, metadata=self._pairs)
        except BaseException:
            self._router.dropped(attempt)
            raise

    async def _follow(self) -> None:
        while True:
            code, details = await self._call.code(), await self._call.details()
            if code is grpc.StatusCode.OK:
                self._router.answered(self._attempt)
                return
            worth = self._router.failed(self._attempt, error_from_status(code, details), self._tried)
            again = self._request.renewed() if worth else None
            if again is None:
                return
            self._request = again
            try:
                self._attempt, self._call = self._start()
            except grpc.aio.UsageError:
                return  # the channel was closed meanwhile: the failure that is known already is the answer

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._call.cancel()
            self._router.dropped(self._attempt)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._task.add_done_callback(lambda _: callback(self))

    def cancel(self) -> None:
        self._task.cancel()

    def done(self) -> bool:
        return self._task.done()

    async def code(self) -> Any:
        return await self._call.code()

    async def details(self) -> Any:
        return await self._call.details()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call.__await__()  # type: ignore[no-any-return]
