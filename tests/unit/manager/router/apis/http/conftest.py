"""The application as a worker runs it, over a dispatcher that a test controls."""

import asyncio
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from tests.fakes.triton import infer_response, texts, vector
from tests.unit.manager.router.settings import http_limits
from tritonclient.grpc import service_pb2
from yarl import URL

from tritonembed_manager.router.apis.http.app import make_app, make_runner
from tritonembed_manager.router.apis.http.status import History
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tracing import Tracing
from tritonembed_manager.router.interfaces import Admission, ServerState, ServerView
from tritonembed_protocol.framing import frame

MODEL = "org/a-model"
BERT = ([101, 102], [101, 1037, 102])
"""The ids of an empty text and of "a"."""


def tokenizer_answer(*ids):
    """The answer of the model `tokenizer`."""
    answer = service_pb2.ModelInferResponse(model_name="tokenizer", model_version="1")
    answer.outputs.add(name="token_ids", datatype="BYTES", shape=(len(ids), 1))
    answer.raw_output_contents.append(frame([np.array(row, "<i4").tobytes() for row in ids]))
    return answer


def server_view(name, state=ServerState.READY, **more):
    return ServerView(name, 0, "127.0.0.1:1", None, more.pop("metrics", None), state, True, **more)


class FakeDispatcher:
    """Answers with the vectors of the texts (or with `answer(request)`), fails, or holds."""

    def __init__(self):
        self.requests = []
        self.metadata = []
        self.timeouts = []
        self.callers = []
        self.failure = None
        self.answer = None
        self.released = asyncio.Event()
        self.released.set()
        self.inside = asyncio.Semaphore(0)
        self.cancelled = asyncio.Semaphore(0)
        self.calls = []
        self.answers = {"ModelInfer": tokenizer_answer(*BERT)}
        self.views = [server_view("a"), server_view("b")]
        self.refusals = []

    @contextmanager
    def admitted(self, _size, *, timeout, caller, work=None, model=""):
        yield Admission(deadline=0, caller=caller)

    def refused(self, code):
        self.refusals.append(code)

    async def infer(self, request, *, timeout, metadata, caller, admitted=None):
        decoded = service_pb2.ModelInferRequest.FromString(request)
        self.requests.append(decoded)
        self.metadata.append(dict(metadata))
        self.timeouts.append(timeout)
        self.callers.append(caller)
        self.inside.release()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        if self.failure:
            raise self.failure
        if self.answer is not None:
            return self.answer(decoded).SerializeToString()
        found = texts(decoded)
        return infer_response([vector(text) for text in found], [len(text) for text in found]).SerializeToString()

    async def call(self, method, request, *, timeout, server=None):
        self.calls.append((method, request, server))
        answer = self.answers[method]
        answer = answer(server) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer.SerializeToString()

    def servers(self):
        return self.views

    def serving(self, model=""):
        return [view.id for view in self.views if view.state is ServerState.READY]


class Serving:
    """A running application: `get` and `post` give (status, headers, body)."""

    def __init__(self, session, base, dispatcher):
        self.session = session
        self.base = base
        self.app = None
        self.dispatcher = dispatcher
        self.status = {}
        self.is_serving = True
        self.history = History(lambda: self.status)

    async def get(self, path, **more):
        return await self._ask("GET", path, **more)

    async def post(self, path, **more):
        return await self._ask("POST", path, **more)

    async def raw(self, method, path, **more):
        """Sends the path unchanged."""
        return await self._ask(method, URL(self.base + path, encoded=True), **more)

    async def _ask(self, method, path, **more):
        async with self.session.request(method, path if isinstance(path, URL) else self.base + path, **more) as answer:
            body = await answer.read()
            found = await answer.json() if answer.content_type == "application/json" else body
            return SimpleNamespace(status=answer.status, headers=answer.headers, body=found, raw=body)


@asynccontextmanager
async def running(
    dispatcher, tracing=None, admin=False, names=None, limits=None, door=None, exemplars=None, **settings
):
    """Runs the application exactly as a worker does."""
    serving = Serving(None, None, dispatcher)
    app = make_app(
        dispatcher,
        SimpleNamespace(
            **{
                "names": names or ServedNames((MODEL,)),
                "admin": admin,
                "accept_token_ids": False,
                "cors_origins": (),
                **settings,
            }
        ),
        lambda: serving.status,
        is_serving=lambda: serving.is_serving,
        tracing=tracing or Tracing(),
        history=serving.history,
        limits=limits or http_limits(),
        door=door,
        exemplars=exemplars,
    )
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        serving.app = app
        serving.session, serving.base = session, f"http://{host}:{port}"
        yield serving
    await runner.cleanup()


@pytest.fixture
async def dispatcher():
    return FakeDispatcher()


@pytest.fixture
async def serving(dispatcher):
    async with running(dispatcher) as found:
        yield found
