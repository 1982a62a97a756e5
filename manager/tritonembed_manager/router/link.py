"""A worker's link to its parent: its configuration, and the lines of JSON on the socket between them.

The parent runs `python -m tritonembed_manager.router.worker --control-fd N --table-fd M`: N is the worker's end of a
Unix socketpair (stream), M the memory of the load table (`workers` rows, `slots` columns). Every line on the socket is
a JSON object with a "type":

parent to worker
    {"type": "config", …}                   the first line: a WorkerConfig
    {"type": "servers", "servers": [ServerView.to_json(), …]}      when a server changes
    {"type": "names", "names": ServedNames.json}                   the models from now on
    {"type": "status", …}                   once per second, for /status and the status page
    {"type": "cleared", "server": id}       a check found a suspect well: it gets requests again
    {"type": "lame_duck"}                   health is negative from now on; requests are still served
    {"type": "ejected", …}                  as another worker sent it
    {"type": "quarantine", "until": {digest: seconds of the monotonic clock}}        refused requests (data/failover.py)
    {"type": "tls", …}                      new Pems for the handshakes from now on
    {"type": "tenants", "tenants": [Tenant.to_json(), …]}          the tenants from now on
    {"type": "server_tls", …}               a new ClientTls for connections to grpcs:// servers from now on
    {"type": "drain"}                       accept nothing new, finish, exit 0; exit 3 if requests were cut
worker to parent
    {"type": "ready"}                       the worker listens on both ports
    {"type": "alive"}                       twice per second, from start to end: a silent worker is killed
    {"type": "failed", "why": "one line"}   the worker cannot start (a port is taken): the parent ends, too
    {"type": "suspect", "server": id, "why": "one line"}           a broken connection, a dead stub
    {"type": "ejected", "server": id, "why": "one line", "seconds": s}                 an outlier (data/outliers.py)
    {"type": "wanted", "model": ensemble}   a request waits for a model that is not in memory
    {"type": "quarantined", "digest": d, "servers": [id, …]}       servers that died with this request
    {"type": "stats", "requests": n, "errors": n, "latencies": [ms, …], "retries": n, "moves": n,
     "servers": {id: {"requests": n, "errors": n, "latencies": [ms, …], "ejections": n}}, …}
                                            once per second, counted since the last such line
    {"type": "cut", "requests": n}          n unfinished requests were refused after drain_timeout
worker to all workers, through the parent
    {"type": "abort", …}, {"type": "aborted", …}                   see apis/arctic.py

If the stream ends, the parent has died, and the worker ends. A worker ignores SIGINT and SIGHUP, which a terminal sends
to every process: the parent sends `drain` instead.
"""

import asyncio
import json
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tritonembed_manager.router.data.hedging import After
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import Tenant
from tritonembed_manager.router.tls import Pems
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_protocol.policies import PolicyName

TO_ALL_WORKERS = ("abort", "aborted")
"""Types of the lines of a worker that the parent passes on to all workers."""
LINE_BYTES = 64 * 1024 * 1024
"""The longest line."""
_BEHIND_BYTES = 1024 * 1024


def send_line(writer: asyncio.StreamWriter, line: dict[str, Any], *, most_unread: int | None = None) -> None:
    """Send a line without waiting. most_unread: drop the line if the other end has more bytes than this to read."""
    if writer.is_closing():
        return
    if most_unread is not None and writer.transport.get_write_buffer_size() > most_unread:
        return
    writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


class Link:
    """The worker's end of the socket. Open it in the event loop that uses it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, fd: int) -> "Link":
        """A link on a descriptor, which the link closes in the end."""
        ours = socket.socket(fileno=fd)
        ours.setblocking(False)
        return cls(*await asyncio.open_connection(sock=ours, limit=LINE_BYTES))

    async def receive(self) -> dict[str, Any] | None:
        """The next line; None if the parent has ended."""
        try:
            line = await self._reader.readline()
            return dict(json.loads(line)) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            # Invalid JSON is a line that was cut off because the parent died.
            return None

    def report(self, kind: str, *, may_drop: bool = False, **content: Any) -> None:
        """Send a line of type `kind`. may_drop: as for `send`."""
        self.send({"type": kind, **content}, may_drop=may_drop)

    def send(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """Send a line without waiting. may_drop: drop it if the parent is far behind with reading."""
        send_line(self._writer, line, most_unread=_BEHIND_BYTES if may_drop else None)

    async def close(self) -> None:
        """Send what is buffered, then close."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """The options of `serve` that workers need as they are given. Times in seconds."""

    workers: int
    host: str
    port: int
    """The gRPC port, shared by all workers (SO_REUSEPORT)."""
    http_port: int
    """The HTTP port, shared likewise."""
    names: ServedNames
    """The models' names for clients; "embedding" if `serve` attaches to servers and no name is given."""
    policy: PolicyName
    forward_timeout: float
    """The timeout of a request without a deadline."""
    max_in_flight: int
    """The most requests at a time, in all workers. Further requests are refused with RESOURCE_EXHAUSTED."""
    max_in_flight_per_server: int
    log_format: str
    """json or text."""
    http_header_timeout: float
    """Time for the request line and the headers of an HTTP request."""
    receive_timeout: float
    """Time for the body of an HTTP request, or for a gRPC message."""
    min_receive_rate: float
    """Least bytes per second of an HTTP body."""
    max_connections_per_peer: int
    """HTTP connections per address and worker."""
    admin: bool
    """Whether requests may change servers."""
    accept_token_ids: bool = False
    """Whether token ids over HTTP's /v1 are accepted without a check for special tokens."""
    cors_origins: tuple[str, ...] = ()
    """The origins whose web pages may call the HTTP port."""
    hedge_after: "After | None" = None
    """See data/hedging.py; None if requests are not hedged."""
    access_log: str | None = None
    """The file that gets a line of JSON per request; None for no such log."""
    key_for_health: bool = False
    key_for_metrics: bool = True
    """Whether tenants' keys are needed for health, and for metrics and the status."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(EndpointSettings):
    """The settings of a worker. They differ between workers only in `index`. Times in seconds."""

    index: int
    """The worker's row in the load table, which has as many rows as there are workers."""
    slots: int
    """Columns of the load table."""
    drain_timeout: float
    """Time for requests in flight to finish. Then they are cut."""
    closing_timeout: float
    """Time after that, for refusing the cut requests and for closing. Then the parent kills the worker."""
    follows_models: bool = False
    """Whether the models may change, or one of them has versions."""
    tls: Pems | None = None
    """The ports' certificate; None for plain text."""
    server_tls: ClientTls = field(default_factory=ClientTls)
    """Certificates for servers with grpcs://."""
    sockets: str | None = None
    """The folder of the Unix sockets on which the worker listens behind Envoy; None if it listens on the ports."""
    tenants: tuple[Tenant, ...] | None = None
    """The tenants; None if the ports need no key."""
    quota_fd: int | None = None
    """The memory of the quota table, with tenants."""

    @property
    def has_several(self) -> bool:
        """Whether there are several models or versions, or may be later."""
        return self.follows_models or bool(self.names.more)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the first line to the worker."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "WorkerConfig":
        """The reverse of `to_json`. Unknown keys, such as "type", are ignored."""
        plain = {field.name: data[field.name] for field in fields(cls)}
        tls = data["tls"] and Pems(**data["tls"])
        tenants = data["tenants"]
        changed = {
            "tls": tls,
            "names": ServedNames.from_json(data["names"]),
            "server_tls": ClientTls(**data["server_tls"]),
            "tenants": None if tenants is None else tuple(map(Tenant.from_json, tenants)),
        }
        return cls(**{**plain, **changed})


@dataclass(frozen=True)
class Sockets:
    """The Unix sockets between Envoy and the manager's processes, in a folder that no other user can open.

    folder: its path is short enough for a socket's name.
    """

    folder: Path

    @property
    def admin(self) -> Path:
        """Envoy's administration."""
        return self.folder / "admin.sock"

    def grpc(self, worker: int) -> Path:
        """The socket on which a worker speaks gRPC."""
        return self.folder / f"grpc-{worker}.sock"

    def http(self, worker: int) -> Path:
        """The socket on which a worker speaks HTTP."""
        return self.folder / f"http-{worker}.sock"
