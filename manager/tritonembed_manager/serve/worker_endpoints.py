"""What a worker listens on: the manager's gRPC port and its HTTP port, both shared with the other workers."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from tritonembed_manager.serve.admission import MAX_REQUEST
from tritonembed_manager.serve.arctic_aborts import Aborts
from tritonembed_manager.serve.kserve_grpc import add_kserve
from tritonembed_manager.serve.late_calls import LateCalls
from tritonembed_manager.serve.model import Dispatcher
from tritonembed_manager.serve.worker_config import WorkerConfig

Say = Callable[[dict[str, Any]], None]
_MOST_PENDING = 1 << 20
_GRPC_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.so_reuseport", 1),
    # Clients behind load balancers ping more often than gRPC's server likes by default.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # gRPC drops calls at random, as CANCELLED, once 1,000 wait for a busy loop; it is for Admission to say no, and why.
    ("grpc.server.max_pending_requests", _MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
]
_LAST_ANSWERS_S = 1.0
"""For answers that are being written when a server stops."""


class PortError(Exception):
    """A port cannot be listened on; the message says which."""


class Endpoints:
    """Both servers, with every adapter over one dispatcher.

    status: the parent's last status line. say: sends a line to the parent. is_serving: False from the moment it drains.
    """

    def __init__(
        self,
        config: WorkerConfig,
        dispatcher: Dispatcher,
        *,
        status: Callable[[], dict[str, Any]],
        say: Say,
        is_serving: Callable[[], bool],
    ) -> None:
        # Here, so that the data plane is usable, and tested, without what the adapters need.
        from tritonembed_manager.serve.arctic import add_arctic
        from tritonembed_manager.serve.grpc_health import add_health
        from tritonembed_manager.serve.reflection import add_reflection
        from tritonembed_manager.serve.tracing import from_environment

        self._config = config
        self._dispatcher = dispatcher
        self._status = status
        self._is_serving = is_serving
        self._tracing = from_environment()
        self._runner: Any = None
        self.aborts = Aborts(say, config.workers - 1)
        self._grpc = grpc.aio.server(options=_GRPC_OPTIONS)
        self._late = LateCalls()
        self._grpc.add_generic_rpc_handlers((self._late,))
        traced = self._tracing.over(dispatcher)
        add_kserve(self._grpc, traced, is_serving)
        add_arctic(self._grpc, traced, config, is_serving, self.aborts)
        self._health = add_health(self._grpc, dispatcher, is_serving)
        add_reflection(self._grpc)

    async def start(self) -> None:
        """Listen on both ports. Raises PortError."""
        await self._start_grpc()
        await self._start_http()

    def refresh(self) -> None:
        """The servers changed, or it drains: those that watch the health are told."""
        self._health.refresh()

    async def stop(self, grace: float = _LAST_ANSWERS_S) -> None:
        """Listen no more; what is being answered has so long."""
        await self._late.hold()
        stopping = asyncio.ensure_future(self._grpc.stop(grace))
        # It begins.
        await asyncio.sleep(0)
        self._late.refuse()
        await stopping
        if self._runner is not None:
            # Last, since it sends the traces that have not been sent.
            await self._runner.cleanup()

    async def _start_grpc(self) -> None:
        host, port = self._config.host, self._config.port
        try:
            bound = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise PortError(f"--port {port}: cannot listen on {host}:{port}")
        await self._grpc.start()

    async def _start_http(self) -> None:
        from aiohttp import web

        from tritonembed_manager.serve.http.app import make_app, make_runner

        host, port = self._config.host, self._config.http_port
        app = make_app(self._dispatcher, self._config, self._status, self._is_serving, self._tracing)
        self._runner = make_runner(app, _LAST_ANSWERS_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, reuse_port=True).start()
        except OSError:
            raise PortError(f"--http-port {port}: cannot listen on {host}:{port}") from None
