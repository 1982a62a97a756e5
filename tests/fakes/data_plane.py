"""A worker's dispatcher over fake servers, in the event loop of a test."""

import asyncio
from contextlib import asynccontextmanager

from tests.fakes.triton import FakeTriton, infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.admission import Admission
from tritonembed_manager.serve.dispatcher import TritonDispatcher
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.model import ServerState, ServerView
from tritonembed_manager.serve.pool import ServerPool


class InTurn:
    """A policy: always the first candidate, unless a test says which key it wants."""

    def __init__(self) -> None:
        self.prefer = None

    def choose(self, candidates):
        keys = [candidate.key for candidate in candidates]
        return keys.index(self.prefer) if self.prefer in keys else 0


class DataPlane:
    """Fakes "0", "1", …, their views as a parent would send them, and the dispatcher."""

    def __init__(self, fakes, *, policy=None, max_in_flight=100, per_server=100, max_bytes=1 << 30, **options):
        self.fakes = fakes
        self.table = LoadTable.create(options.pop("workers", 1), 16)
        self.row = self.table.row(0)
        self.suspects = []
        pool_options = {"suspension": options.pop("suspension", 60.0)}
        self.pool = ServerPool(self.row, per_server, lambda *what: self.suspects.append(what), **pool_options)
        self.policy = policy or InTurn()
        self.admission = Admission(self.row, max_in_flight, max_bytes)
        self.dispatcher = TritonDispatcher(
            self.pool, self.policy, self.admission, options.pop("timeout", 20), **options
        )
        self.views = [view(str(slot), slot, fake.address) for slot, fake in enumerate(fakes)]
        self.pool.update(self.views)

    def say(self, server: int, state=ServerState.READY, **changes):
        """The parent's word on one of them."""
        self.views[server] = ServerView(**{**vars(self.views[server]), "state": state, **changes})
        self.pool.update(self.views)

    async def infer(self, *sentences, timeout=10.0, metadata=(), **parameters):
        """One request; its decoded answer."""
        message = infer_request(*(sentences or (b"a text",)), **parameters).SerializeToString()
        answer = await self.dispatcher.infer(message, timeout=timeout, metadata=metadata)
        return service_pb2.ModelInferResponse.FromString(answer)

    def start(self, count=1, **options):
        """So many requests in tasks of their own."""
        return [asyncio.ensure_future(self.infer(**options)) for _ in range(count)]

    def is_idle(self):
        """Whether every counter is back at zero."""
        cells = [self.table.admitted(), self.table.admitted_bytes(), len(self.pool.waiters)]
        cells += [count(slot) for slot in range(16) for count in (self.table.work, self.table.in_flight)]
        return not any(cells)


def view(key, slot, address, state=ServerState.READY, **more):
    """A server as the parent describes it."""
    return ServerView(key, slot, address, None, None, state, launched=False, **more)


@asynccontextmanager
async def data_plane(count=2, **options):
    """So many fakes and a dispatcher over them; on leaving, nothing may be outstanding."""
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
