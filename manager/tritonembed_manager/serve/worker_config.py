"""What a worker process is told when it starts, and the lines it exchanges with its parent.

The parent runs `python -m tritonembed_manager.serve.worker --control-fd N --table-fd M`: N is the worker's end of a
Unix socketpair (stream), M the memory of the load table (`workers` rows, `slots` columns). Every line on the socket is
one JSON object with a "type":

parent to worker
    {"type": "config", …}                   first line: a WorkerConfig
    {"type": "servers", "servers": [ServerView.to_json(), …]}      whenever anything changes
    {"type": "status", …}                   once a second, for /status and the status page
    {"type": "cleared", "server": id}       a suspect was looked at, and it is well: it gets requests again
    {"type": "drain"}                       accept nothing new, finish, exit 0; exit 3 if drain_timeout cut something
worker to parent
    {"type": "ready"}                       it listens on both ports
    {"type": "failed", "why": "one line"}   it cannot start (a port is taken): the parent gives up, too
    {"type": "suspect", "server": id, "why": "one line"}           a broken connection, a dead stub
    {"type": "stats", "requests": n, "errors": n, "latencies": [ms, …], "retries": n, "moves": n,
     "servers": {id: {"requests": n, "errors": n, "latencies": [ms, …], "ejections": n}}, …}
                                            once a second, counted since the last such line
    {"type": "cut", "requests": n}          so many had not finished when drain_timeout was over: they are told so
worker to all workers, through the parent
    {"type": "abort", …}, {"type": "aborted", …}                   see arctic_aborts.py

The end of the stream means that the parent has died: the worker ends. A worker ignores SIGINT and SIGHUP, which a
terminal sends to everyone: its parent tells it when to drain.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class WorkerConfig:
    """The same for every worker, but for its index. Times in seconds."""

    index: int
    """Its row in the load table."""
    workers: int
    """Rows of the load table."""
    slots: int
    """Columns of the load table."""
    host: str
    port: int
    """gRPC, shared by all workers (SO_REUSEPORT)."""
    http_port: int
    """The same for HTTP."""
    model: str
    """What --model said: the name that OpenAI's and Arctic's clients use. "embedding" when attaching without one."""
    policy: str
    """round_robin, random or least_loaded."""
    forward_timeout: float
    """Of a request that came without a deadline."""
    drain_timeout: float
    """In which what is in flight may finish; then it is cut."""
    closing_timeout: float
    """After that, for telling those whose requests are cut, and for closing. Then the parent kills."""
    max_in_flight: int
    """Requests in all workers at one time; more are refused with RESOURCE_EXHAUSTED."""
    max_in_flight_per_server: int
    log_format: str
    """json or text."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the first line."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "WorkerConfig":
        """The other way round; what it does not know ("type") is left out."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})
