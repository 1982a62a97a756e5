"""A worker's endpoints: the manager's gRPC port and its HTTP port, both shared with the other workers.

The gRPC server also has reflection, and refuses the calls that arrive while it stops.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.arctic import Aborts, add_arctic
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2
from tritonembed_manager.router.apis.authentication import Door
from tritonembed_manager.router.apis.grpc_arrivals import Arrivals
from tritonembed_manager.router.apis.grpc_health import HEALTH, add_health
from tritonembed_manager.router.apis.grpc_requests import GrpcRequests
from tritonembed_manager.router.apis.http.app import make_app, make_runner
from tritonembed_manager.router.apis.http.connections import HttpLimits
from tritonembed_manager.router.apis.kserve_grpc import add_kserve
from tritonembed_manager.router.data.admission import DRAINING, MAX_REQUEST, Memory
from tritonembed_manager.router.data.metrics import Exemplar
from tritonembed_manager.router.data.tracing import from_environment
from tritonembed_manager.router.interfaces import Dispatcher
from tritonembed_manager.router.link import Sockets, WorkerConfig
from tritonembed_manager.router.tls import Pems, ServerTls

_TURN_S, _QUIET_TURNS, _MOST_S = 0.01, 10, 1.0
"""A turn without a new call is quiet. After this many quiet turns in a row, every caller waits for an answer. Turns are
counted instead of time, because time also passes while this process does not run. `_MOST_S` is the limit, because some
callers send calls without waiting for answers."""


class LateCalls(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Refuses calls with UNAVAILABLE while the server stops. Add it before all other handlers of the server.

    When a server stops, gRPC ends the calls that have no handler yet with CANCELLED, as if the caller had gone away. So
    `hold` lets new calls wait. Then the server stops, and clients send no more calls. Then `refuse` answers the calls.
    """

    def __init__(self) -> None:
        self._holding = False
        self._held = 0
        self._stopped = asyncio.Event()

    async def hold(self) -> None:
        """Let every new call wait from now on. Returns once no new calls arrive."""
        self._holding = True
        end, quiet = time.monotonic() + _MOST_S, 0
        while quiet < _QUIET_TURNS and time.monotonic() < end:
            before = self._held
            await asyncio.sleep(_TURN_S)
            quiet = quiet + 1 if self._held == before else 0

    def refuse(self) -> None:
        """Refuse the waiting calls, and all later calls."""
        self._stopped.set()

    def service(self, _call: Any) -> Any:
        """The handler of a new call; None leaves it to the server's other handlers."""
        if not self._holding:
            return None
        self._held += 1
        # A stream handler runs before the caller has sent a message.
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, _messages: Any, context: Any) -> None:
        await self._stopped.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, DRAINING)


SERVICES = (
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    arctic_inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    HEALTH,
)
NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both names have the same messages; older tools know only the second."""


def add_reflection(server: grpc.aio.Server) -> None:
    """Add server reflection, with which tools such as grpcurl list and call services without a .proto file."""
    # The type stubs have only the blocking servicer.
    servicer = reflection.aio.ReflectionServicer((*SERVICES, *NAMES[1:]))  # type: ignore[attr-defined]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]
    server.add_generic_rpc_handlers(tuple(handlers))


Send = Callable[[dict[str, Any]], None]
_MOST_PENDING, _MOST_PENDING_S = 1 << 20, 86400
_GRPC_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.so_reuseport", 1),
    # Clients behind load balancers ping more often than gRPC's server allows by default.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Close a connection that never becomes HTTP/2, or whose peer vanished without closing it.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The most that a stream may send before its message is read.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    # By default gRPC cancels calls at random once 1,000 wait for a busy loop. Admission control refuses with a reason.
    ("grpc.server.max_pending_requests", _MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
    # By default it also cancels calls that have waited for 30 s.
    ("grpc.server_max_unrequested_time_in_server", _MOST_PENDING_S),
]
_LAST_ANSWERS_S = 1.0
"""Time for the answers that are being written when a server stops."""


class PortError(Exception):
    """The worker cannot listen on a port; the message names it."""


class Endpoints:
    """The gRPC server and the HTTP server, with every adapter over one dispatcher.

    status: returns the parent's last status line. send: sends a line to the parent. is_serving: False once the worker
    is a lame duck or drains. door: with tenants. exemplars: returns those of the latencies, by bucket.
    """

    def __init__(
        self,
        config: WorkerConfig,
        dispatcher: Dispatcher,
        *,
        status: Callable[[], dict[str, Any]],
        send: Send,
        is_serving: Callable[[], bool],
        door: Door | None = None,
        exemplars: Callable[[], Mapping[int, Exemplar]] = dict,
    ) -> None:
        self._exemplars = exemplars
        self._config = config
        self._sockets = Sockets(Path(config.sockets)) if config.sockets is not None else None
        self._dispatcher = dispatcher
        self._status = status
        self._is_serving = is_serving
        self.tracing = from_environment()
        self._runner: web.AppRunner | None = None
        self.aborts = Aborts(send, config.workers - 1)
        self._tls = ServerTls(config.tls) if config.tls else None
        self._grpc = grpc.aio.server(options=_GRPC_OPTIONS)
        self._late = LateCalls()
        self._grpc.add_generic_rpc_handlers((self._late,))
        self._memory = Memory()
        self._arrivals = Arrivals(config.receive_timeout, self._memory)
        self._keeping: asyncio.Future[None] | None = None
        self._door = door
        calls = GrpcRequests(self.tracing, is_logged=config.access_log is not None).over(self._grpc)
        server = self._arrivals.over(calls if door is None else door.over(calls))
        traced = self.tracing.over(dispatcher)
        add_kserve(server, traced, is_serving, admin=config.admin, names=config.names)
        add_arctic(server, traced, config.names, is_serving, self.aborts)
        self._health = add_health(server, dispatcher, is_serving)
        add_reflection(server)

    async def start(self) -> None:
        """Listen on both ports. Raises PortError."""
        self._keeping = asyncio.ensure_future(self._arrivals.keep())
        await self._start_grpc()
        await self._start_http()

    def refresh(self) -> None:
        """Send the health to its watchers; call it when servers changed, or when the worker drains."""
        self._health.refresh()

    def set_tls(self, pems: Pems) -> None:
        """Use another certificate for new connections, if the ports speak TLS. Raises ValueError."""
        if self._tls is not None:
            self._tls.update(pems)

    async def stop(self, grace: float = _LAST_ANSWERS_S) -> None:
        """Stop listening. grace: seconds for the answers that are being written."""
        await self._late.hold()
        stopping = asyncio.ensure_future(self._grpc.stop(grace))
        # Let the stop begin.
        await asyncio.sleep(0)
        self._late.refuse()
        await stopping
        if self._keeping is not None:
            self._keeping.cancel()
        if self._runner is not None:
            # At the end, because it sends the remaining traces.
            await self._runner.cleanup()

    async def _start_grpc(self) -> None:
        host, port = self._config.host, self._config.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._sockets is not None:
            address = f"unix:{self._sockets.grpc(self._config.index)}"
        try:
            if self._tls is None:
                bound = self._grpc.add_insecure_port(address)
            else:
                bound = self._grpc.add_secure_port(address, self._tls.credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise PortError(f"--port {port}: cannot listen on {host}:{port}")
        await self._grpc.start()

    async def _start_http(self) -> None:
        host, port = self._config.host, self._config.http_port
        limits = HttpLimits(
            self._config.http_header_timeout,
            self._config.receive_timeout,
            self._config.min_receive_rate,
            self._config.max_connections_per_peer,
        )
        tls = self._tls
        app = make_app(
            self._dispatcher,
            self._config,
            self._status,
            self._is_serving,
            self.tracing,
            limits=limits,
            memory=self._memory,
            envoy=self._sockets.admin if self._sockets else None,
            door=self._door,
            certificate=lambda: None if tls is None else tls.expires,
            exemplars=self._exemplars if self.tracing.provider is not None else None,
            is_logged=self._config.access_log is not None,
        )
        self._runner = runner = make_runner(app, _LAST_ANSWERS_S, (lambda: tls.context) if tls else None)
        await runner.setup()
        try:
            if self._sockets is not None:
                await web.UnixSite(runner, self._sockets.http(self._config.index)).start()
            else:
                await web.TCPSite(runner, host, port, reuse_port=True).start()
        except OSError:
            raise PortError(f"--http-port {port}: cannot listen on {host}:{port}") from None
