"""Blocking requests to the client's servers: one, or several of which another answers when one breaks."""

from __future__ import annotations

from typing import Any

import grpc

from ._errors import error_from_rpc
from ._metadata import Pairs
from ._request import Request
from ._routed_call import RoutedCall
from ._router import Router, Server


class DirectCalls:
    """All requests to one server."""

    def __init__(self, stub: Any) -> None:
        self._infer = stub.ModelInfer

    def ask(self, request: Request, pairs: Pairs) -> Any:
        """The answer; raises TritonEmbedError."""
        return ask(self._infer, request.message, request.timeout, pairs)

    def send(self, request: Request, pairs: Pairs) -> Any:
        """Start a request; gives gRPC's future."""
        return self._infer.future(request.message, timeout=request.timeout, metadata=pairs)


class RoutedCalls:
    """Each request to one of several servers, and to others if that one breaks."""

    def __init__(self, router: Router, stubs: list[Any]) -> None:
        self._router = router
        self._infer = [stub.ModelInfer for stub in stubs]

    def ask(self, request: Request, pairs: Pairs) -> Any:
        """The answer; raises TritonEmbedError."""
        tried: list[Server] = []
        while True:
            attempt = self._router.begin(request.work, tried)
            tried.append(attempt.server)
            try:
                infer = self._infer[attempt.server.index]
                response = infer(request.message, timeout=request.timeout, metadata=pairs)
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
                return response

    def send(self, request: Request, pairs: Pairs) -> Any:
        """Start a request; gives what looks like gRPC's future."""
        call = RoutedCall(self._router, self._infer, request, pairs)
        call.start()
        return call


def ask(method: Any, message: Any, timeout: float | None, pairs: Pairs) -> Any:
    """A blocking call of any method; raises TritonEmbedError."""
    try:
        return method(message, timeout=timeout, metadata=pairs)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
