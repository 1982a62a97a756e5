"""A worker's dispatcher over fake servers, in the event loop of a test."""

import asyncio
import time
from contextlib import asynccontextmanager

from tests.fakes.triton import FakeTriton, infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.admission import AdmissionControl
from tritonembed_manager.router.data.dispatcher import TritonDispatcher
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.router.interfaces import Caller, ServerState, ServerView

CALLER = Caller("somebody")


class InTurn:
    """A policy that chooses the first candidate, or the server whose key a test sets in `prefer`."""

    def __init__(self) -> None:
        self.prefer = None

    def choose(self, candidates):
        keys = [candidate.key for candidate in candidates]
        return keys.index(self.prefer) if self.prefer in keys else 0


class DataPlane:
    """Fake servers "0", "1", …, their views as the supervisor would send them, and the dispatcher."""

    def __init__(self, fakes, *, policy=None, max_in_flight=100, per_server=100, max_bytes=1 << 30, **options):
        self.fakes = fakes
        self.table = LoadTable.create(options.pop("workers", 1), 16)
        self.row = self.table.row(0)
        self.suspects = []
        pool_options = {"first_pause": options.pop("first_pause", 60.0)}
        self.ejections = []
        pool_options |= {
            "ejected": lambda *what: self.ejections.append(what),
            "clock": options.get("clock", time.monotonic),
        }
        budget = options.pop("budget", None)
        self.quarantined = []
        options["quarantined"] = lambda *what: self.quarantined.append(what)
        self.pool = UpstreamPool(self.row, per_server, lambda *what: self.suspects.append(what), **pool_options)
        self.policy = policy or InTurn()
        self.admission = AdmissionControl(self.row, max_in_flight, max_bytes)
        self.dispatcher = TritonDispatcher(
            self.pool, self.policy, self.admission, options.pop("timeout", 20), **options
        )
        self.views = [view(str(slot), slot, fake.address) for slot, fake in enumerate(fakes)]
        self.pool.update(self.views)
        for server in self.pool.servers() if budget is not None else ():
            server.budget = budget

    def report(self, server: int, state=ServerState.READY, **changes):
        """Change the view of a server, as if the supervisor had sent it."""
        self.views[server] = ServerView(**{**vars(self.views[server]), "state": state, **changes})
        self.pool.update(self.views)

    async def infer(self, *sentences, timeout=10.0, metadata=(), caller=CALLER, **parameters):
        """Send one request; return the decoded answer."""
        message = infer_request(*(sentences or (b"a text",)), **parameters).SerializeToString()
        answer = await self.dispatcher.infer(message, timeout=timeout, metadata=metadata, caller=caller)
        return service_pb2.ModelInferResponse.FromString(answer)

    def start(self, count=1, **options):
        """Start `count` requests, each in a task of its own."""
        return [asyncio.ensure_future(self.infer(**options)) for _ in range(count)]

    def is_idle(self):
        """Whether every counter is zero."""
        cells = [self.table.admitted(), self.table.admitted_bytes(), self.pool.waiting]
        cells += [count(slot) for slot in range(16) for count in (self.table.work, self.table.in_flight)]
        return not any(cells)


def view(key, slot, address, state=ServerState.READY, **more):
    """A server's view, as the supervisor sends it."""
    return ServerView(key, slot, address, None, None, state, launched=False, **more)


@asynccontextmanager
async def data_plane(count=2, **options):
    """`count` fake servers and a dispatcher over them. On leaving, every counter has to be zero."""
    fakes = [FakeTriton() for _ in range(count)]
    for fake in fakes:
        await fake.start()
    plane = DataPlane(fakes, **options)
    try:
        yield plane
        assert plane.is_idle()
    finally:
        await plane.pool.close()
        for fake in fakes:
            await fake.stop()
        plane.table.close()
