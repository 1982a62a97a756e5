"""Calls that reach a gRPC server while it stops."""

import asyncio
import time
from typing import Any

import grpc

from tritonembed_manager.serve.admission import DRAINING

_TURN_S, _QUIET_TURNS, _MOST_S = 0.01, 10, 1.0
"""A turn without a new call is a quiet one; so many of them mean that every caller waits. Turns are counted, not time,
which also passes while this process does not run. Some callers never wait for an answer: hence the most."""


class LateCalls(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Refuses them with UNAVAILABLE. Add it before all other handlers of the server.

    What a server has not taken in by the moment it stops gRPC ends with CANCELLED, as if the caller had gone away. So
    callers are made to wait first; then the server stops, which tells them to send nothing more, and then they hear.
    """

    def __init__(self) -> None:
        self._holding = False
        self._held = 0
        self._stopped = asyncio.Event()

    async def hold(self) -> None:
        """Let everything that comes from now on wait; until nothing comes any more."""
        self._holding = True
        end, quiet = time.monotonic() + _MOST_S, 0
        while quiet < _QUIET_TURNS and time.monotonic() < end:
            before = self._held
            await asyncio.sleep(_TURN_S)
            quiet = quiet + 1 if self._held == before else 0

    def refuse(self) -> None:
        """The server stops: tell all that wait, and all that still come."""
        self._stopped.set()

    def service(self, _call: Any) -> Any:
        """gRPC asks for the handler of each call."""
        if not self._holding:
            return None
        self._held += 1
        # Of this kind, since it waits for no message of the caller's.
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, _messages: Any, context: Any) -> None:
        await self._stopped.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, DRAINING)
