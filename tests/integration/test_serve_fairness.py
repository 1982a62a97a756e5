"""Who goes first through `serve`: callers share the servers, and priority 1 goes ahead, over real servers."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
from tests.integration.serve import Serve
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_protocol.framing import frame, unframe_vectors
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import OUTPUT_TYPES

SENTENCES = [
    f"sentence {number} of a caller with {number % 97} more words " + "and so on " * 6 for number in range(512)
]
FLOOD = 36
"""Several times what a server holds in its window of half a second."""
Stub = service_pb2_grpc.GRPCInferenceServiceStub


@contextmanager
def connected(manager: Serve) -> Iterator[Stub]:
    """A caller: it has a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(manager.target, options) as channel:
        yield Stub(channel)  # type: ignore[no-untyped-call]


def request(texts: list[str], priority: int = 0) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(
        model_name="embedding", id="mine", raw_input_contents=[frame([text.encode() for text in texts])]
    )
    message.inputs.add(name="text", datatype="BYTES", shape=(len(texts), 1))
    if priority:
        message.parameters["priority"].int64_param = priority
    return message


def flood_left(manager: Serve, *, own_connection: bool, priority: int = 0) -> int:
    """Sends FLOOD large requests over one connection, then one more. Returns how many are unanswered when the last
    one is answered. own_connection: whether the last one is another caller's."""
    with ExitStack() as stack:
        flood = stack.enter_context(connected(manager))
        last = stack.enter_context(connected(manager)) if own_connection else flood
        pool = stack.enter_context(ThreadPoolExecutor(FLOOD))
        running: list[Future[object]] = [pool.submit(flood.ModelInfer, request(SENTENCES)) for _ in range(FLOOD)]
        # Once one is answered, the others have reached the manager.
        next(as_completed(running))
        last.ModelInfer(request(SENTENCES, priority))
        left = sum(not one.done() for one in running)
        for one in running:
            one.result()
    return left


@pytest.mark.parametrize(("own_connection", "priority"), [(True, 0), (False, 1)], ids=["caller", "priority"])
def test_a_request_does_not_wait_for_all_that_came_before(manager: Serve, own_connection: bool, priority: int) -> None:
    # First come, first served would leave none to two. Those in a server's window are ahead anyway.
    assert any(flood_left(manager, own_connection=own_connection, priority=priority) >= FLOOD // 2 for _ in range(3))


def test_one_callers_requests_of_one_priority_keep_their_order(manager: Serve) -> None:
    assert any(flood_left(manager, own_connection=False) <= 2 for _ in range(3))


def test_a_request_in_parts_has_the_answer_of_a_server(manager: Serve) -> None:
    [server] = manager.until(manager.status)["servers"]
    with ExitStack() as stack:
        through = stack.enter_context(connected(manager))
        channel = stack.enter_context(
            grpc.insecure_channel(server["address"], [("grpc.max_receive_message_length", -1)])
        )
        before = manager.status()["servers"][0]
        answer = through.ModelInfer(request(SENTENCES))
        expected = Stub(channel).ModelInfer(request(SENTENCES))  # type: ignore[no-untyped-call]
        after = manager.until(lambda: (now := manager.status()["servers"][0]) != before and now)
    assert after["requests"] >= before["requests"] + 1
    assert [output.name for output in answer.outputs] == [output.name for output in expected.outputs]
    place = [output.name for output in answer.outputs].index("embedding")
    found, wanted = (
        unframe_vectors(each.raw_output_contents[place], len(SENTENCES), OUTPUT_TYPES["float"].dtype)
        for each in (answer, expected)
    )
    # Vectors depend in their last bits on what else is in a batch.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The manager tells the space of the vectors.
    del answer.parameters[SPACE]
    for each in (answer, expected):
        each.raw_output_contents[place] = b""
    assert answer.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
