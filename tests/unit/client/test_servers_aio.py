"""The asyncio client of several servers; see test_servers."""

import asyncio
import time

import grpc
import pytest
from tests.unit.client.fake_server import FakeServer, Gate, elements, parameters
from tests.unit.client.test_servers import RESET, STUB_DIED, fail, loads, numbers

from tritonembed import (
    AsyncEmbeddingClient,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)

Code = grpc.StatusCode


@pytest.fixture
async def client(two):
    async with AsyncEmbeddingClient([fake.target for fake in two], policy="round_robin") as opened:
        yield opened
        await wait_for_no_load(opened)


@pytest.fixture
def gates(two):
    """Both servers hold every request."""
    held = [Gate(), Gate()]
    for fake, gate in zip(two, held, strict=True):
        fake.infer = gate
    return held


async def wait_for_no_load(client):
    """A task that was cancelled ends a moment later."""
    end = time.monotonic() + 60
    while loads(client) != [0, 0]:
        assert time.monotonic() < end, loads(client)
        await asyncio.sleep(0)


async def inside(gates, count):
    for gate in gates:
        await asyncio.to_thread(gate.wait_inside, count)


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_loaded"])
async def test_the_requests_of_one_call_are_spread_and_their_order_is_kept(two, policy):
    async with AsyncEmbeddingClient([fake.target for fake in two], policy=policy) as client:
        result = await client.embed(numbers(100), batch_size=2)
        assert result.embeddings[:, 0].tolist() == list(range(100))
        assert loads(client) == [0, 0]
    assert all(fake.requests for fake in two)


@pytest.mark.parametrize("failure", [STUB_DIED, RESET, (Code.CANCELLED, "the server shuts down")])
async def test_requests_that_fail_on_a_broken_server_are_answered_by_the_other(two, client, failure):
    two[0].infer = fail(*failure)
    result = await client.embed(numbers(6), batch_size=1)
    assert result.embeddings[:, 0].tolist() == list(range(6))
    assert two[0].requests
    assert len(two[1].requests) == 6


async def test_a_server_that_goes_away_with_requests_in_it_is_not_noticed(two, client):
    gate = two[0].infer = Gate()
    task = asyncio.create_task(client.embed(numbers(20), batch_size=1, timeout=30))
    await inside([gate], 1)
    closing = asyncio.create_task(asyncio.to_thread(two[0].close))
    assert (await task).embeddings[:, 0].tolist() == list(range(20))
    gate.open()
    await closing


async def test_a_request_that_breaks_every_server_is_sent_to_each_once(two, client):
    for fake in two:
        fake.infer = fail(*RESET)
    with pytest.raises(UnavailableError, match="Connection reset"):
        await client.embed(["0"])
    assert [len(fake.requests) for fake in two] == [1, 1]


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (Code.INVALID_ARGUMENT, "too long", InvalidArgumentError),
        (Code.RESOURCE_EXHAUSTED, "overload", OverloadedError),
        (Code.UNAVAILABLE, "Exceeds maximum queue size", OverloadedError),
    ],
)
async def test_an_error_that_another_server_would_repeat_is_not_retried(two, client, code, words, kind):
    for fake in two:
        fake.infer = fail(code, words)
    with pytest.raises(kind, match=words):
        await client.embed(["1"])
    assert sum(len(fake.requests) for fake in two) == 1


async def test_the_second_server_gets_the_remaining_time(two, client):
    two[0].infer = fail(*RESET)
    while not two[0].requests:
        await client.embed(["1"], timeout=20)
    again = parameters(two[1].requests[-1])["timeout"]
    assert 15e6 < again < parameters(two[0].requests[0])["timeout"] < 20e6


async def test_the_deadline_ends_a_call_and_its_requests(two, client, gates):
    with pytest.raises(DeadlineExceededError):
        await client.embed(numbers(4), batch_size=1, timeout=0.3)
    await wait_for_no_load(client)
    for fake, gate in zip(two, gates, strict=True):
        await asyncio.to_thread(gate.wait_ended, len(fake.requests))


@pytest.mark.parametrize("started", [True, False])
async def test_cancelling_the_task_cancels_its_requests_also_at_once(two, client, gates, started):
    task = asyncio.create_task(client.embed(numbers(40), batch_size=1))
    if started:
        await inside(gates, 8)
    else:
        await asyncio.sleep(0)  # After one step, requests exist and none has run.
    assert sum(loads(client)) == 16 * 5 + 6 if started else sum(loads(client)) > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_for_no_load(client)
    if started:
        for gate in gates:
            await asyncio.to_thread(gate.wait_ended, 8)
    assert sum(len(fake.requests) for fake in two) <= 16
    assert [server.failures for server in client._transport._router.upstreams] == [0, 0]


async def test_closing_the_client_fails_outstanding_calls_and_retries_nothing(two, gates):
    client = AsyncEmbeddingClient([fake.target for fake in two], max_in_flight=2)
    task = asyncio.create_task(client.embed(numbers(4), batch_size=1))
    await inside(gates, 2)
    await client.close()
    with pytest.raises(CancelledError):
        await task
    await wait_for_no_load(client)
    assert sum(len(fake.requests) for fake in two) == 4


async def test_info_readiness_and_a_server_that_is_back(two, client):
    port = two[0].port
    two[0].close()
    assert (await client.info()).name == "triton"
    assert await client.is_ready()
    two[0] = FakeServer(port=port)
    end = time.monotonic() + 60
    while not two[0].requests:
        assert time.monotonic() < end
        await client.embed(["1"])
    assert elements(two[0].requests[0]) == [b"1"]
