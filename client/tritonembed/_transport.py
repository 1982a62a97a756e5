"""Blocking requests to the client's servers: to one server, or to several with failover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from tritonembed_protocol.policies import PolicyName

from ._channel import ChannelSettings, Pairs
from ._errors import error_from_rpc
from ._routing import Attempt, Router, Upstream
from .request import PreparedRequest

LONGEST_CLOSE = 1.0
"""Seconds; closing normally takes milliseconds."""


class Transport:
    """Channels to the servers."""

    def __init__(self, targets: list[str], policy: PolicyName, settings: ChannelSettings) -> None:
        self._router = Router(targets, policy)
        self._channels = settings.open(targets)
        self.stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._infer = [stub.ModelInfer for stub in self.stubs]

    def open(self) -> None:
        """Raises RuntimeError once the client is closed."""
        if not self._channels:
            raise RuntimeError("the client is closed")

    def close(self) -> None:
        """Close the connections; outstanding requests fail with CancelledError."""
        channels, self._channels = self._channels, []
        if channels:
            self._router.close()
            # gRPC cancels every request and waits until they have ended. A request that Ctrl-C hit on its way into gRPC
            # never ends (grpc/grpc#19973): then a thread is left behind with the waiting.
            thread = Thread(target=_close, args=[channels], daemon=True)
            thread.start()
            thread.join(LONGEST_CLOSE)

    def send(self, request: PreparedRequest, pairs: Pairs) -> Any:
        """Start a request; gives gRPC's future, or a RoutedCall."""
        if len(self._infer) > 1:
            call = RoutedCall(self._router, self._infer, request, pairs)
            call.start()
            return call
        return self._infer[0].future(request.message, timeout=request.timeout, metadata=pairs)

    def infer_of(self, sent: Any) -> Any:
        """gRPC's method of the server that answered a call."""
        return self._infer[0] if len(self._infer) == 1 else sent.infer

    def answer(self, request: PreparedRequest, pairs: Pairs) -> Any:
        """The answer to a request, and its call. Raises TritonEmbedError.

        gRPC handles a blocking call in this thread, at half the cost of a call that may run concurrently.
        """
        if len(self._infer) == 1:
            return ask(self._infer[0].with_call, request.message, request.timeout, pairs)
        tried: list[Upstream] = []
        while True:
            attempt = self._router.begin(request.work, tried)
            tried.append(attempt.upstream)
            try:
                infer = self._infer[attempt.upstream.index]
                response, call = infer.with_call(request.message, timeout=request.timeout, metadata=pairs)
            except grpc.RpcError as failed:
                error = error_from_rpc(failed)
                again = request.renewed() if self._router.failed(attempt, error, tried) else None
                if again is None:
                    raise error from None
                request = again
            except BaseException:
                self._router.dropped(attempt)
                raise
            else:
                self._router.answered(attempt)
                return response, _Answered(call, infer)


@dataclass(frozen=True)
class _Answered:
    """A call that has ended. infer: gRPC's method of its server."""

    call: Any
    infer: Any

    def initial_metadata(self) -> Any:
        return self.call.initial_metadata()


class RoutedCall:
    """The part of grpc.Future that the pipeline uses, for a request that may go to several servers in turn.

    gRPC's thread sends it again as soon as gRPC knows of the failure, whatever the caller does meanwhile.
    """

    def __init__(self, router: Router, infer: list[Any], request: PreparedRequest, pairs: Pairs) -> None:
        self._router = router
        self._infer = infer
        self._request = request
        self._pairs = pairs
        self._tried: list[Upstream] = []
        self._lock = Lock()
        self._call: Any = None  # gRPC's future of the latest attempt
        self._done = False
        self._cancelled = False
        self._callbacks: list[Callable[[Any], None]] = []

    def start(self) -> None:
        """Send it to a server."""
        attempt = self._router.begin(self._request.work, self._tried)
        self._tried.append(attempt.upstream)
        request = self._request
        try:
            infer = self._infer[attempt.upstream.index]
            call = infer.future(request.message, timeout=request.timeout, metadata=self._pairs)
        except BaseException:
            self._router.dropped(attempt)
            raise
        with self._lock:
            self._call = call
            cancelled = self._cancelled
        if cancelled:
            call.cancel()
        call.add_done_callback(lambda finished: self._finished(attempt, finished))

    def _finished(self, attempt: Attempt, call: Any) -> None:
        if self._is_sent_again(attempt, call):
            return
        with self._lock:
            self._done = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def _is_sent_again(self, attempt: Attempt, call: Any) -> bool:
        if call.code() is grpc.StatusCode.OK:
            self._router.answered(attempt)
            return False
        if self._cancelled:
            self._router.dropped(attempt)
            return False
        again = self._request.renewed() if self._router.failed(attempt, error_from_rpc(call), self._tried) else None
        if again is None:
            return False
        self._request = again
        try:
            self.start()
        except ValueError:
            return False  # the channel was closed meanwhile: the known failure is the answer
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            call = self._call
        call.cancel()

    def done(self) -> bool:
        return self._done

    def code(self) -> Any:
        return self._call.code()

    def details(self) -> Any:
        return self._call.details()

    @property
    def infer(self) -> Any:
        """gRPC's method of the server that answered."""
        return self._infer[self._tried[-1].index]

    def initial_metadata(self) -> Any:
        return self._call.initial_metadata()

    def result(self) -> Any:
        return self._call.result()


def ask(method: Any, message: Any, timeout: float | None, pairs: Pairs) -> Any:
    """A call of any method. Raises TritonEmbedError."""
    try:
        return method(message, timeout=timeout, metadata=pairs)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None


def _close(channels: list[grpc.Channel]) -> None:
    for channel in channels:
        channel.close()
