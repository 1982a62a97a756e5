"""Asyncio requests to the client's servers: to one server, or to several with failover (see _transport)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from tritonembed_protocol.policies import PolicyName

from ._channel import ChannelSettings, Pairs
from ._errors import error_from_rpc, error_from_status
from ._routing import Attempt, Router, Upstream
from .request import PreparedRequest


class AsyncTransport:
    """Channels to the servers, opened at the first call."""

    def __init__(self, targets: list[str], policy: PolicyName, settings: ChannelSettings) -> None:
        self.stubs: list[Any] = []
        self._infer: list[Any] = []
        self._targets = targets
        self._settings = settings
        self._router = Router(targets, policy)
        self._channels: list[grpc.aio.Channel] = []
        self._closed = False

    def open(self) -> None:
        """Raises RuntimeError once the client is closed."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if not self._channels:
            # Not in the constructor: a channel takes the event loop that runs when it is opened.
            self._channels = self._settings.open_aio(self._targets)
            self.stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
            self._infer = [stub.ModelInfer for stub in self.stubs]

    async def close(self) -> None:
        """Close the connections; outstanding requests fail with CancelledError."""
        self._closed = True
        self._router.close()
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close(None)

    def send(self, request: PreparedRequest, pairs: Pairs) -> Any:
        """Start a request; gives gRPC's call, or a RoutedCall."""
        if len(self._infer) > 1:
            return RoutedCall(self._router, self._infer, request, pairs)
        return self._infer[0](request.message, timeout=request.timeout, metadata=pairs)

    def infer_of(self, sent: Any) -> Any:
        """gRPC's method of the server that answered a call."""
        return self._infer[0] if len(self._infer) == 1 else sent.infer

    async def answer(self, request: PreparedRequest, pairs: Pairs) -> Any:
        """The answer to a request, and its call. Raises TritonEmbedError."""
        call = self.send(request, pairs)
        try:
            # The status, not the result: that would raise asyncio.CancelledError if the client was closed.
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                raise error_from_status(code, await call.details())
            return await call, call
        finally:
            call.cancel()


class RoutedCall:
    """The part of grpc.aio.Call that the pipeline uses, for a request that may go to several servers in turn."""

    def __init__(self, router: Router, infer: list[Any], request: PreparedRequest, pairs: Pairs) -> None:
        self._router = router
        self._infer = infer
        self._request = request
        self._pairs = pairs
        self._tried: list[Upstream] = []
        self._attempt, self._call = self._start()
        self._task = asyncio.create_task(self._follow())
        # Not in the task itself: a task that is cancelled before its first step never runs.
        self._task.add_done_callback(self._ended)

    def _start(self) -> tuple[Attempt, Any]:
        attempt = self._router.begin(self._request.work, self._tried)
        self._tried.append(attempt.upstream)
        request = self._request
        try:
            infer = self._infer[attempt.upstream.index]
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
            retried = self._router.failed(self._attempt, error_from_status(code, details), self._tried)
            again = self._request.renewed() if retried else None
            if again is None:
                return
            self._request = again
            try:
                self._attempt, self._call = self._start()
            except grpc.aio.UsageError:
                return  # the channel was closed meanwhile: the known failure is the answer

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
        if not self._task.done():
            await asyncio.wait([self._task])
        return await self._call.code()

    async def details(self) -> Any:
        return await self._call.details()

    @property
    def infer(self) -> Any:
        """gRPC's method of the server that answered."""
        return self._infer[self._tried[-1].index]

    async def initial_metadata(self) -> Any:
        return await self._call.initial_metadata()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call.__await__()  # type: ignore[no-any-return]


async def ask(method: Any, message: Any, timeout: float | None, pairs: Pairs) -> Any:
    """A call of any method. Raises TritonEmbedError."""
    try:
        return await method(message, timeout=timeout, metadata=pairs)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
