"""A blocking client's request on its way to one of several servers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import grpc

from ._errors import error_from_rpc
from ._metadata import Pairs
from ._request import Request
from ._router import Attempt, Router, Server


class RoutedCall:
    """As much of grpc.Future as the pipeline uses, for a request that may be at one server after the other.

    It is sent again from gRPC's thread as soon as gRPC knows of the failure, whatever the caller does meanwhile.
    """

    def __init__(self, router: Router, infer: list[Any], request: Request, pairs: Pairs) -> None:
        self._router = router
        self._infer = infer
        self._request = request
        self._pairs = pairs
        self._tried: list[Server] = []
        self._lock = Lock()
        self._call: Any = None  # gRPC's future of the latest attempt, and in the end the one that counts
        self._done = False
        self._cancelled = False
        self._callbacks: list[Callable[[Any], None]] = []

    def start(self) -> None:
        """Send it to a server."""
        attempt = self._router.begin(self._request.work, self._tried)
        self._tried.append(attempt.server)
        request = self._request
        try:
            infer = self._infer[attempt.server.index]
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
            return False  # the channel was closed meanwhile: the failure that is known already is the answer
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

    def result(self) -> Any:
        return self._call.result()
