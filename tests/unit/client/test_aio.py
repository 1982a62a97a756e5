import asyncio
import inspect
import threading
from contextlib import aclosing

import grpc
import numpy as np
import pytest
from tests.unit.client.fake_server import DIMENSIONS, Gate, elements, embed, parameters

from tritonembed import (
    AsyncEmbeddingClient,
    CancelledError,
    DeadlineExceededError,
    EmbeddingClient,
    ServerError,
)


@pytest.fixture
async def aclient(server):
    async with AsyncEmbeddingClient(server.target) as opened:
        yield opened


def first_number(request):
    return int(elements(request)[0])


def numbers(count):
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("name", ["__init__", "embed", "iter_embed", "embed_tokens", "is_ready", "info"])
def test_both_clients_take_the_same_parameters(name):
    blocking = inspect.signature(getattr(EmbeddingClient, name)).parameters
    asynchronous = inspect.signature(getattr(AsyncEmbeddingClient, name)).parameters
    assert blocking == asynchronous


@pytest.mark.parametrize("texts", [numbers(100), []])
async def test_results_equal_the_blocking_clients(aclient, client, texts):
    ours = await aclient.embed(iter(texts), batch_size=7)
    theirs = client.embed(texts, batch_size=7)
    assert np.array_equal(ours.embeddings, theirs.embeddings)
    assert np.array_equal(ours.num_tokens, theirs.num_tokens)
    assert ours.embeddings.shape == (len(texts), DIMENSIONS)


async def test_requests_equal_the_blocking_clients(aclient, client, server):
    asked = {"input_type": "query", "prompt": "find: ", "truncate": "START", "dimensions": 4, "normalize": False}
    for more in (asked, {"prompt_name": "query", "embedding_type": "int8", "priority": "interactive"}):
        await aclient.embed(["1"], **more)
        assert [len(result.num_tokens) async for result in aclient.iter_embed(["1"], **more)] == [1]
        client.embed(["1"], **more)
        sent = [parameters(request) for request in server.requests[-3:]]
        assert sent[0] == sent[1] == sent[2]


async def test_token_ids_info_and_readiness(aclient, server):
    assert (await aclient.embed_tokens([[5, 6]])).embeddings[0, 0] == 11
    assert (await aclient.info()).dimensions == DIMENSIONS
    assert await aclient.is_ready()
    server.models = ["embedding"]
    assert [model.name for model in (await aclient.info()).models] == ["embedding"]


async def test_a_client_without_a_server_is_not_ready(aclient, server):
    server.close()
    assert not await aclient.is_ready()


async def test_order_is_kept_if_later_requests_are_answered_first(aclient, server):
    later = threading.Event()

    def infer(request, _context):
        if first_number(request) == 0:
            assert later.wait(60)
        if first_number(request) == 10:
            later.set()
        return embed(request)

    server.infer = infer
    result = await aclient.embed(numbers(40), batch_size=10)
    assert result.embeddings[:, 0].tolist() == list(range(40))


async def test_cancelling_the_task_cancels_its_requests(server):
    server.infer = gate = Gate()
    async with AsyncEmbeddingClient(server.target, max_in_flight=4) as client:
        task = asyncio.create_task(client.embed(numbers(20), batch_size=1))
        await asyncio.to_thread(gate.wait_inside, 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(gate.wait_ended, 4)
        assert gate.most == 4
        assert len(server.requests) == 4


async def test_the_first_error_is_raised_at_once_and_cancels_the_rest(server):
    gate = Gate()

    def infer(request, context):
        if first_number(request) == 3:
            gate.wait_inside(3)
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        return gate(request, context)

    server.infer = infer
    async with AsyncEmbeddingClient(server.target, max_in_flight=4) as client:
        with pytest.raises(ServerError, match="broken"):
            await client.embed(numbers(20), batch_size=1)
        await asyncio.to_thread(gate.wait_ended, 3)
    assert len(server.requests) == 4
    gate.open()


async def test_leaving_a_stream_early_cancels_its_requests(aclient, server):
    server.infer = gate = Gate(hold=lambda request: first_number(request) > 0)
    async with aclosing(aclient.iter_embed(numbers(5), batch_size=1)) as results:
        async for result in results:
            assert result.embeddings[0, 0] == 0
            await asyncio.to_thread(gate.wait_inside, 1)
            sent = gate.inside
            break
    await asyncio.to_thread(gate.wait_ended, sent)


async def test_results_stream_in_order_one_per_request(aclient):
    results = [result async for result in aclient.iter_embed(iter(numbers(10)), batch_size=4)]
    assert [value for result in results for value in result.embeddings[:, 0].tolist()] == list(range(10))
    assert [len(result.num_tokens) for result in results] == [4, 4, 2]


async def test_closing_the_client_fails_outstanding_calls_and_cancels_no_task(server):
    server.infer = gate = Gate()
    client = AsyncEmbeddingClient(server.target)
    task = asyncio.create_task(client.embed(numbers(3), batch_size=1))
    await asyncio.to_thread(gate.wait_inside, 3)
    await client.close()
    with pytest.raises(CancelledError):
        await task
    with pytest.raises(RuntimeError, match="closed"):
        await client.embed(["1"])


async def test_the_deadline_ends_a_call_and_its_requests(aclient, server):
    server.infer = gate = Gate()
    with pytest.raises(DeadlineExceededError):
        await aclient.embed(numbers(3), batch_size=1, timeout=0.3)
    # On a busy machine some requests never reach the server.
    await asyncio.to_thread(gate.wait_ended, len(server.requests))
    assert all(0 < parameters(request)["timeout"] <= 300_000 for request in server.requests)


async def test_many_calls_run_together(aclient):
    results = await asyncio.gather(*(aclient.embed([str(number)]) for number in range(50)))
    assert [result.embeddings[0, 0] for result in results] == list(range(50))


async def test_a_client_that_was_never_used_closes():
    await AsyncEmbeddingClient().close()


def test_a_client_may_be_made_before_there_is_an_event_loop(server):
    client = AsyncEmbeddingClient(server.target)

    async def use():
        async with client:
            return await client.embed(["4"])

    assert asyncio.run(use()).embeddings[0, 0] == 4
