"""A client of several servers: spread, order, loads, and failover."""

import threading
import time
from contextlib import suppress

import grpc
import pytest
from tests.unit.client.fake_server import FakeServer, Gate, elements, embed, parameters

from tritonembed import (
    CancelledError,
    DeadlineExceededError,
    EmbeddingClient,
    InvalidArgumentError,
    OverloadedError,
    ServerError,
    UnavailableError,
)

Code = grpc.StatusCode
STUB_DIED = (Code.INTERNAL, "in ensemble 'embedding', Stub process 'embedder_0_0' is not healthy.")
RESET = (Code.UNAVAILABLE, "recvmsg:Connection reset by peer")


@pytest.fixture
def client(two):
    with EmbeddingClient([fake.target for fake in two], policy="round_robin") as opened:
        yield opened
        wait_for_no_load(opened)


def loads(client):
    return [server.load for server in client._transport._router.upstreams]


def wait_for_no_load(client):
    """gRPC reports cancelled requests from its own thread, a moment later."""
    end = time.monotonic() + 60
    while loads(client) != [0, 0]:
        assert time.monotonic() < end, loads(client)
        time.sleep(0.001)


def numbers(count):
    return [str(number) for number in range(count)]


def fail(code, words, times=10**6):
    """An ``infer`` that fails `times` times and works after that."""
    left = [None] * times

    def infer(request, context):
        with suppress(IndexError):
            left.pop()
            context.abort(code, words)
        return embed(request)

    return infer


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_loaded"])
def test_the_requests_of_one_call_are_spread_and_their_order_is_kept(two, policy):
    with EmbeddingClient([fake.target for fake in two], policy=policy) as client:
        assert client.embed(numbers(100), batch_size=2).embeddings[:, 0].tolist() == list(range(100))
        assert client.embed_tokens([[1], [2]], batch_size=1).embeddings[:, 0].tolist() == [1, 2]
        assert loads(client) == [0, 0]
    assert all(fake.requests for fake in two)
    assert sum(len(fake.requests) for fake in two) == 52


def test_the_bound_of_requests_in_flight_is_for_each_server(two):
    gates = [Gate(), Gate()]
    for fake, gate in zip(two, gates, strict=True):
        fake.infer = gate
    with EmbeddingClient([fake.target for fake in two], max_in_flight=3) as client:
        thread = threading.Thread(target=client.embed, args=[numbers(30)], kwargs={"batch_size": 1})
        thread.start()
        for gate in gates:
            gate.wait_inside(3)
        assert all(load > 0 for load in loads(client))
        for gate in gates:
            gate.open()
        thread.join()
        assert loads(client) == [0, 0]


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("failure", [STUB_DIED, RESET, (Code.CANCELLED, "the server shuts down")])
def test_requests_that_fail_on_a_broken_server_are_answered_by_the_other(two, client, count, failure):
    two[0].infer = fail(*failure)
    for _ in range(2):  # With round robin, at least one of two requests is sent to the broken server first.
        assert client.embed(numbers(count), batch_size=1).embeddings[:, 0].tolist() == list(range(count))
    assert two[0].requests
    assert len(two[1].requests) == 2 * count


@pytest.mark.parametrize("count", [1, 6])
def test_a_server_that_goes_away_with_requests_in_it_is_not_noticed(two, client, count):
    gate = two[0].infer = Gate()
    results = []

    def work():
        for _ in range(2):
            results.append(client.embed(numbers(count), batch_size=1, timeout=30).embeddings[:, 0].tolist())

    thread = threading.Thread(target=work)
    thread.start()
    gate.wait_inside(1)
    closer = threading.Thread(target=two[0].close)
    closer.start()
    thread.join()
    gate.open()
    closer.join()
    assert results == [list(range(count))] * 2


@pytest.mark.parametrize("count", [1, 3])
def test_a_request_that_breaks_every_server_is_sent_to_each_once(two, client, count):
    for fake in two:
        fake.infer = fail(*RESET)
    with pytest.raises(UnavailableError, match="Connection reset"):
        client.embed(numbers(count), batch_size=1)
    for fake in two:
        asked = [element for request in fake.requests for element in elements(request)]
        assert len(asked) == len(set(asked))
        assert b"0" in asked or count > 1


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (Code.INVALID_ARGUMENT, "too long", InvalidArgumentError),
        (Code.RESOURCE_EXHAUSTED, "overload", OverloadedError),
        (Code.UNAVAILABLE, "in ensemble 'embedding', Exceeds maximum queue size", OverloadedError),
        (Code.UNAVAILABLE, "Request timeout expired", DeadlineExceededError),
        (Code.INTERNAL, "the batch failed on the device", ServerError),
    ],
)
def test_an_error_that_another_server_would_repeat_is_not_retried(two, client, code, words, kind, count):
    for fake in two:
        fake.infer = fail(code, words)
    with pytest.raises(kind, match=words):
        client.embed(numbers(count), batch_size=1)
    asked = [element for fake in two for request in fake.requests for element in elements(request)]
    assert len(asked) == len(set(asked)) <= count


def test_a_single_server_gets_a_request_once_whatever_its_error(server):
    server.infer = fail(*RESET)
    for target in (server.target, [server.target]):
        with EmbeddingClient(target) as client, pytest.raises(UnavailableError):
            client.embed(["1"])
    assert len(server.requests) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_the_second_server_gets_the_remaining_time(two, count):
    for fake in two:
        fake.infer = fail(*RESET, times=1)
    two[1].infer = embed
    with EmbeddingClient([fake.target for fake in two], policy="round_robin") as client:
        while not two[0].requests:
            client.embed(numbers(count), batch_size=1, timeout=20)
    wanted = elements(two[0].requests[0])
    again = [request for request in two[1].requests if elements(request) == wanted][-1]
    first = parameters(two[0].requests[0])["timeout"]
    assert 15e6 < parameters(again)["timeout"] < first < 20e6


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_retried_after_the_deadline(two, client, monkeypatch, count):
    now = [1000.0]
    monkeypatch.setattr("tritonembed.request.monotonic", lambda: now[0])

    def infer(request, context):
        now[0] += 100
        context.abort(*RESET)

    for fake in two:
        fake.infer = infer
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        client.embed(numbers(count), batch_size=1, timeout=50)
    wait_for_no_load(client)
    asked = [element for fake in two for request in fake.requests for element in elements(request)]
    assert len(asked) == len(set(asked))


@pytest.fixture
def gates(two):
    """Both servers hold every request but the first, which is answered as soon as a second request has arrived."""
    held = [Gate(), Gate()]

    def infer(gate, other):
        def answer(request, context):
            if elements(request) != [b"0"]:
                return gate(request, context)
            other.wait_inside(1)  # With round robin, the second request is sent to the other server.
            return embed(request)

        return answer

    two[0].infer, two[1].infer = infer(*held), infer(*reversed(held))
    return held


def test_an_error_of_the_source_of_texts_leaves_no_load(client, gates):
    def texts():
        yield from numbers(5)
        for gate in gates:
            gate.wait_inside(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.embed(texts(), batch_size=1)
    wait_for_no_load(client)


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_a_stream_that_is_left_early_leaves_no_load(client, gates, end):
    results = client.iter_embed(numbers(9), batch_size=1)
    next(results)
    assert sum(loads(client)) > 0
    if end == "closed":
        results.close()
    del results
    wait_for_no_load(client)
    assert [server.failures for server in client._transport._router.upstreams] == [0, 0]


def test_an_error_of_one_request_leaves_no_load(two, client):
    two[0].infer, two[1].infer = fail(Code.INTERNAL, "broken"), Gate()
    with pytest.raises(ServerError, match="broken"):
        client.embed(numbers(9), batch_size=1)
    wait_for_no_load(client)


def test_closing_the_client_fails_outstanding_calls_and_retries_nothing(two):
    gates = [Gate(), Gate()]
    for fake, gate in zip(two, gates, strict=True):
        fake.infer = gate
    client = EmbeddingClient([fake.target for fake in two], max_in_flight=2)
    caught = []

    def call():
        try:
            client.embed(numbers(4), batch_size=1)
        except Exception as error:
            caught.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    for gate in gates:
        gate.wait_inside(2)
    client.close()
    thread.join(20)
    assert caught == [CancelledError]
    wait_for_no_load(client)
    assert sum(len(fake.requests) for fake in two) == 4
    with pytest.raises(RuntimeError, match="closed"):
        client.embed(["1"])


def test_a_server_that_is_back_is_used_again(two, client):
    port = two[0].port
    two[0].close()
    for number in range(10):
        assert client.embed([str(number)]).embeddings[0, 0] == number
    two[0] = FakeServer(port=port)
    end = time.monotonic() + 60
    while not two[0].requests:
        assert time.monotonic() < end
        client.embed(["1"])


def test_info_and_readiness_are_those_of_the_first_reachable_server(two, client):
    assert client.info().name == "triton"
    two[0].close()
    assert client.info().name == "triton"
    assert client.is_ready()
    two[1].close()
    assert not client.is_ready()
    with pytest.raises(UnavailableError):
        client.info()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "the list of servers is empty"),
        (["a:1", "a:1"], "twice"),
        ("a:65536", "65536 is not a port"),
        (["a:1", "[::1]:0"], "0 is not a port"),
    ],
)
def test_no_server_a_repeated_server_and_an_invalid_port_are_value_errors(targets, words):
    with pytest.raises(ValueError, match=words):
        EmbeddingClient(targets)


def test_another_policy_is_a_value_error():
    with pytest.raises(ValueError, match="least_loaded"):
        EmbeddingClient("a:1", policy="best")
