import gc
import itertools
import threading
import time

import grpc
import pytest
from tests.unit.client.fake_server import Gate, elements, embed, parameters

from tritonembed import CancelledError, DeadlineExceededError, EmbeddingClient, InvalidArgumentError, ServerError


def first_number(request):
    return int(elements(request)[0])


def numbers(count):
    return [str(number) for number in range(count)]


def hold_all_but_the_first(server):
    """Holds every request but the first, which is answered as soon as a second request has arrived."""
    gate = Gate()

    def infer(request, context):
        if first_number(request) > 0:
            return gate(request, context)
        gate.wait_inside(1)
        return embed(request)

    server.infer = infer
    return gate


def test_order_is_kept_if_later_requests_are_answered_first(client, server):
    later = threading.Event()

    def infer(request, _context):
        if first_number(request) == 0:
            assert later.wait(60)  # The first response comes only after the second.
        if first_number(request) == 10:
            later.set()
        return embed(request)

    server.infer = infer
    result = client.embed(numbers(40), batch_size=10)
    assert result.embeddings[:, 0].tolist() == list(range(40))


@pytest.mark.parametrize("bound", [1, 3])
def test_no_more_requests_are_in_flight_than_the_bound(server, bound):
    lock, inside, most = threading.Lock(), itertools.count(1), []
    running = set()

    def infer(request, _context):
        number = next(inside)
        with lock:
            running.add(number)
            most.append(len(running))
        answer = embed(request)
        with lock:
            running.discard(number)
        return answer

    server.infer = infer
    with EmbeddingClient(server.target, max_in_flight=bound) as client:
        client.embed(numbers(100), batch_size=2)
    assert len(most) == 50
    assert max(most) <= bound


def test_requests_are_in_flight_together_up_to_the_bound(server):
    server.infer = gate = Gate()
    with EmbeddingClient(server.target, max_in_flight=4) as client:
        thread = threading.Thread(target=client.embed, args=[numbers(10)], kwargs={"batch_size": 1})
        thread.start()
        gate.wait_inside(4)
        gate.open()
        thread.join()
    assert gate.most == 4


def test_a_slow_first_request_holds_back_neither_the_server_nor_more_than_the_bound(server):
    server.infer = gate = Gate(hold=lambda request: first_number(request) == 0)
    taken = itertools.count()
    with EmbeddingClient(server.target, max_in_flight=3) as client:
        results = client.iter_embed((str(next(taken)) for _ in range(100)), batch_size=1)
        thread = threading.Thread(target=next, args=[results])
        thread.start()
        gate.wait_inside(1)
        while len(server.requests) < 6:
            time.sleep(0.001)
        gate.open()
        thread.join()
        # Twice the bound, and one request that was sent while the first response was being returned.
        assert next(taken) <= 7
        results.close()


def test_results_stream_in_order_one_per_request(client):
    results = list(client.iter_embed(numbers(10), batch_size=4))
    assert [len(result.num_tokens) for result in results] == [4, 4, 2]
    assert [value for result in results for value in result.embeddings[:, 0].tolist()] == list(range(10))
    results[0].embeddings[:] = 0  # Writable, so the array has its own memory.


def test_a_stream_of_no_texts_has_no_results(client, server):
    assert list(client.iter_embed([])) == []
    assert server.requests == []


def test_a_stream_takes_texts_only_as_it_is_read(client):
    taken = itertools.count()
    results = client.iter_embed((str(next(taken)) for _ in itertools.count()), batch_size=1)
    next(results)
    next(results)
    results.close()
    assert next(taken) <= 2 + 16


def test_bad_arguments_of_a_stream_are_errors_at_once(client):
    with pytest.raises(InvalidArgumentError):
        client.iter_embed(["1"], embedding_type="double")
    with pytest.raises(ValueError, match="batch_size"):
        client.iter_embed(["1"], batch_size=0)


def test_the_first_error_of_any_request_is_raised_at_once_and_cancels_the_rest(server):
    server.infer = gate = Gate()
    held = gate

    def infer(request, context):
        if first_number(request) == 3:
            gate.wait_inside(3)
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        return held(request, context)

    server.infer = infer
    with EmbeddingClient(server.target, max_in_flight=4) as client:
        with pytest.raises(ServerError, match="broken"):  # although requests 0 to 2 before it are never answered
            client.embed(numbers(20), batch_size=1)
        gate.wait_ended(3)
        assert len(server.requests) == 4
    gate.open()


def test_an_error_of_the_source_of_texts_passes_through_and_cancels_the_rest(client, server):
    server.infer = gate = Gate()

    def texts():
        yield from numbers(3)
        gate.wait_inside(3)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.embed(texts(), batch_size=1)
    gate.wait_ended(3)


def test_closing_a_stream_cancels_its_requests(client, server):
    gate = hold_all_but_the_first(server)
    results = client.iter_embed(numbers(5), batch_size=1)
    next(results)
    sent = len(server.requests) - 1
    gate.wait_inside(sent)
    results.close()
    gate.wait_ended(sent)


def test_a_stream_that_is_forgotten_cancels_its_requests(client, server):
    gate = hold_all_but_the_first(server)
    results = client.iter_embed(numbers(5), batch_size=1)
    next(results)
    sent = len(server.requests) - 1
    gate.wait_inside(sent)
    del results
    gc.collect()
    gate.wait_ended(sent)


@pytest.mark.parametrize("count", [1, 5])
def test_closing_the_client_fails_outstanding_calls(server, count):
    server.infer = gate = Gate()
    client = EmbeddingClient(server.target)
    caught = []

    def call():
        try:
            client.embed(numbers(count), batch_size=1)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    gate.wait_inside(count)
    client.close()
    thread.join(20)
    assert [type(error) for error in caught] == [CancelledError]


@pytest.mark.parametrize("count", [1, 5])
def test_the_deadline_ends_a_call_and_its_requests(client, server, count):
    server.infer = gate = Gate()
    with pytest.raises(DeadlineExceededError):
        client.embed(numbers(count), batch_size=1, timeout=0.3)
    gate.wait_ended(len(server.requests))  # On a busy machine some requests never reach the server.


def test_the_deadline_is_for_the_whole_call_not_for_each_request(client, server):
    def texts():
        yield "1"
        time.sleep(0.3)
        yield "2"

    with pytest.raises(DeadlineExceededError):
        client.embed(texts(), batch_size=1, timeout=0.2)
    assert len(server.requests) <= 1


def test_the_remaining_time_is_sent_as_grpc_deadline_and_as_kserve_timeout(client, server):
    client.embed((text for text in numbers(3)), batch_size=1, timeout=20)
    sent = [parameters(request)["timeout"] for request in server.requests]
    assert all(15e6 < microseconds < 20e6 for microseconds in sent)
    assert all(15 < seconds < 21 for seconds in server.time_left)
    assert len(set(sent)) == 3  # less each time


def test_without_a_timeout_there_is_no_deadline(client, server):
    client.embed(["1"])
    assert "timeout" not in parameters(server.requests[0])
    assert server.time_left == [None] or server.time_left[0] > 1e8


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_that_has_passed_sends_nothing(client, server, timeout):
    with pytest.raises(DeadlineExceededError):
        client.embed(["1"], timeout=timeout)
    assert server.requests == []


@pytest.mark.parametrize("timeout", [float("nan"), float("inf")])
def test_a_timeout_that_is_no_number_is_a_value_error(client, timeout):
    with pytest.raises(ValueError, match="finite"):
        client.embed(["1"], timeout=timeout)


def test_a_very_long_timeout_is_fine(client):
    assert client.embed(["1"], timeout=1e300).num_tokens.tolist() == [1]


def test_one_client_serves_many_threads(client):
    failures = []

    def work(start):
        texts = [str(number) for number in range(start, start + 50)]
        for _ in range(5):
            got = client.embed(texts, batch_size=7).embeddings[:, 0].tolist()
            failures.extend([start] if got != list(range(start, start + 50)) else [])

    threads = [threading.Thread(target=work, args=[100 * number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_max_in_flight_below_one_is_a_value_error():
    with pytest.raises(ValueError, match="max_in_flight"):
        EmbeddingClient(max_in_flight=0)


def test_closing_does_not_wait_for_ever_for_a_request_that_grpc_lost(server, monkeypatch):
    never = threading.Event()
    client = EmbeddingClient(server.target)
    [channel] = client._transport._channels
    monkeypatch.setattr("tritonembed._transport.LONGEST_CLOSE", 0.05)
    monkeypatch.setattr(channel, "close", never.wait)
    client.close()
    assert not never.is_set()
    never.set()
