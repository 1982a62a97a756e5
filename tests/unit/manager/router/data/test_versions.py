"""Several versions of a model: which one a request goes to, and what happens when one comes, breaks or goes."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from tests.fakes.data_plane import CALLER, data_plane
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.models_dispatcher import ModelsDispatcher
from tritonembed_manager.router.interfaces import DispatchError, ServerState

_CODE = grpc.StatusCode
SPACES = {"old": "aaaa-float32", "new": "bbbb-float32"}


class Case:
    """A dispatcher of one model. Each version has a fake server; `report` says what the parent sent."""

    def __init__(self, planes, before):
        """before: for requests that come before the first servers."""
        self.planes = planes
        for name, plane in planes.items():
            plane.fakes[0].space = SPACES[name]
        made = [before.dispatcher, *(plane.dispatcher for plane in planes.values())]
        self.dispatcher = ModelsDispatcher(ServedNames(), lambda _served: made.pop(0))

    def report(self, **weights):
        """The weight of each version that there is, or its weight and its state."""
        views = []
        for slot, (name, given) in enumerate(weights.items()):
            weight, state = given if isinstance(given, tuple) else (given, ServerState.READY)
            [view] = self.planes[name].views
            view = replace(view, id=name, slot=slot, version=name, weight=weight, space=SPACES[name], state=state)
            views.append(view)
        self.dispatcher.update(views)

    async def infer(self, timeout=10.0, admitted=None, **parameters):
        message = infer_request(b"a text", **parameters).SerializeToString()
        answer = await self.dispatcher.infer(message, timeout=timeout, metadata=(), caller=CALLER, admitted=admitted)
        found = service_pb2.ModelInferResponse.FromString(answer)
        return found.parameters["embedding_space"].string_param

    def counts(self):
        return Counter({name: len(plane.fakes[0].requests) for name, plane in self.planes.items()})


@asynccontextmanager
async def two_versions():
    async with AsyncExitStack() as stack:
        planes = {name: await stack.enter_async_context(data_plane(1)) for name in SPACES}
        yield Case(planes, await stack.enter_async_context(data_plane(0)))


@pytest.fixture
async def case():
    async with two_versions() as found:
        yield found


async def test_requests_are_split_by_weight_and_each_answer_names_its_space(case):
    case.report(old=90.0, new=10.0)
    spaces = Counter([await case.infer() for _ in range(50)])
    assert spaces == {SPACES["old"]: 45, SPACES["new"]: 5}
    case.report(old=0.0, new=100.0)
    assert {await case.infer() for _ in range(5)} == {SPACES["new"]}


async def test_a_request_that_asks_for_a_space_goes_to_the_version_that_has_it(case):
    case.report(old=100.0, new=0.0)
    for name in ("new", "old", "new"):
        assert await case.infer(embedding_space=SPACES[name]) == SPACES[name]
    with pytest.raises(DispatchError) as caught:
        await case.infer(embedding_space="cccc-float32")
    assert caught.value.code is _CODE.INVALID_ARGUMENT
    assert "aaaa-float32 and bbbb-float32" in caught.value.message


async def test_all_messages_of_a_request_go_to_one_version(case):
    case.report(old=50.0, new=50.0)
    for _ in range(4):
        with case.dispatcher.admitted(1, timeout=10, caller=CALLER) as admitted:
            assert len({await case.infer(admitted=admitted) for _ in range(6)}) == 1
    assert case.counts() == {"old": 12, "new": 12}


async def test_a_version_without_a_server_gets_nothing_and_its_waiting_requests_move(case):
    case.report(old=50.0, new=(50.0, ServerState.UNHEALTHY))
    assert {await case.infer() for _ in range(4)} == {SPACES["old"]}
    case.report(old=(50.0, ServerState.STARTING), new=(50.0, ServerState.STARTING))
    waiting = [asyncio.ensure_future(case.infer()) for _ in range(4)]
    await asyncio.sleep(0)
    case.report(old=(50.0, ServerState.STARTING), new=50.0)
    assert set(await asyncio.gather(*waiting)) == {SPACES["new"]}


async def test_a_request_whose_version_is_gone_is_not_answered_by_another_one(case):
    case.report(old=100.0, new=0.0)
    with case.dispatcher.admitted(1, timeout=10, caller=CALLER) as admitted:
        assert await case.infer(admitted=admitted) == SPACES["old"]
        case.report(new=100.0)
        with pytest.raises(DispatchError, match="replaced") as caught:
            await case.infer(admitted=admitted)
    assert caught.value.code is _CODE.UNAVAILABLE
    assert await case.infer() == SPACES["new"]


async def test_requests_in_flight_finish_on_a_version_that_gets_no_more(case):
    case.report(old=100.0, new=0.0)
    case.planes["old"].fakes[0].hang()
    in_flight = asyncio.ensure_future(case.infer())
    await case.planes["old"].fakes[0].wait_inside(1)
    case.report(old=0.0, new=100.0)
    case.report(new=100.0)
    assert await case.infer() == SPACES["new"]
    case.planes["old"].fakes[0].release()
    assert await in_flight == SPACES["old"]
