"""The embedding space of answers through the dispatcher, and requests that ask for one."""

import asyncio

import grpc
import pytest
from tests.fakes.data_plane import CALLER, data_plane
from tests.fakes.triton import infer_request, infer_response, vector

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.envelope import read_envelope
from tritonembed_manager.router.data.protobuf import RefusedMessage
from tritonembed_manager.router.interfaces import DispatchError, ServerState
from tritonembed_protocol.space import HEADER, SPACE

ONE, OTHER = "aa-float32", "aa-16bit"


def give(plane, *found):
    """Give the servers their spaces, as checks would have found them."""
    for number, space in enumerate(found):
        plane.fakes[number].space = space
        plane.report(number, space=space)


def space_of(response):
    return response.parameters[SPACE].string_param if SPACE in response.parameters else None


async def test_an_answer_has_the_space_of_the_server_that_made_it():
    async with data_plane(2) as plane:
        give(plane, ONE, OTHER)
        for server, space in (("0", ONE), ("1", OTHER)):
            plane.policy.prefer = server
            response = await plane.infer(b"one", b"two")
            assert space_of(response) == space
            # The server has checked it itself.
            assert plane.fakes[int(server)].requests[-1].parameters[SPACE].string_param == space


async def test_a_large_answer_has_the_space_once_and_at_its_end():
    async with data_plane(2) as plane:
        give(plane, ONE, ONE)
        request = infer_request(*[b"x" * 500] * 700).SerializeToString()
        answer = await plane.dispatcher.infer(request, timeout=60, metadata=(), caller=CALLER)
        assert spaces.in_answer(answer) == ONE
        assert answer.count(SPACE.encode()) == 1


async def test_an_unknown_space_is_neither_sent_nor_told():
    async with data_plane(1) as plane:
        assert space_of(await plane.infer()) is None
        assert SPACE not in plane.fakes[0].requests[0].parameters


async def test_a_server_that_has_become_another_one_is_suspected_and_the_request_goes_elsewhere():
    async with data_plane(2) as plane:
        give(plane, ONE, ONE)
        plane.fakes[0].space = "bb-float32"
        assert space_of(await plane.infer()) == ONE
        assert [len(fake.requests) for fake in plane.fakes] == [1, 1]
        assert plane.suspects == [("0", spaces.CHANGED)]


@pytest.mark.parametrize("how", ["parameter", "header"])
async def test_who_asks_for_a_space_gets_only_servers_with_it(how):
    async with data_plane(2) as plane:
        give(plane, ONE, OTHER)
        asked = {SPACE: OTHER} if how == "parameter" else {"metadata": [(HEADER, OTHER)]}
        for _ in range(3):
            assert space_of(await plane.infer(**asked)) == OTHER
        assert [len(fake.requests) for fake in plane.fakes] == [0, 3]


@pytest.mark.parametrize("known", [True, False])
async def test_a_space_that_no_server_has_is_refused_in_one_line(known):
    async with data_plane(2) as plane:
        if known:
            give(plane, ONE, OTHER)
        with pytest.raises(DispatchError) as caught:
            await plane.infer(**{SPACE: "bb-float32"})
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        own = f"the vectors here are of the space {OTHER} and {ONE}," if known else "the servers do not report theirs"
        assert caught.value.message.startswith(f"embedding_space: {own}")
        assert "bb" not in caught.value.message
        assert not any(fake.requests for fake in plane.fakes)


async def test_while_no_server_is_ready_such_a_request_waits_for_one():
    async with data_plane(1) as plane:
        plane.report(0, state=ServerState.STARTING)
        [asked] = plane.start(**{SPACE: ONE})
        while not plane.pool.waiting:
            await asyncio.sleep(0)
        give(plane, ONE)
        assert space_of(await asked) == ONE


@pytest.mark.parametrize("wrong", ["", 7, True])
def test_a_space_that_is_no_text_is_refused(wrong):
    with pytest.raises(RefusedMessage, match="embedding_space: must be a string"):
        read_envelope(infer_request(b"a", **{SPACE: wrong}).SerializeToString())


def test_only_a_whole_parameter_at_the_end_of_an_answer_is_a_space():
    answer = infer_response([vector(b"a")], [1]).SerializeToString()
    labelled = answer + spaces.parameter(ONE)
    assert spaces.in_answer(labelled) == ONE
    assert spaces.in_answer(answer) == ""
    for wrong in (labelled[:-1], labelled + b"x", labelled + answer):
        assert spaces.in_answer(wrong) == ""


async def test_models_without_vectors_are_not_asked_for_a_space():
    vectors = (b"embedding", b"embedder")
    async with data_plane(1) as plane:
        give(plane, ONE)
        [server] = plane.pool.servers()
        assert spaces.of_request(b"embedder", vectors, server) == ONE
        assert spaces.of_request(b"tokenizer", vectors, server) == ""
        assert spaces.of_request(b"somebody_elses", vectors, server) == ""
