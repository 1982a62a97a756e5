"""The queue in front of fake servers: what they hold at a time, who goes first, and large requests in parts."""

import asyncio

import grpc
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_request, texts

from tritonembed_manager.router.data import failover, spaces
from tritonembed_manager.router.data.dispatcher import TritonDispatcher
from tritonembed_manager.router.data.window import LOOSE_S, TIGHT_S
from tritonembed_manager.router.interfaces import Caller, DispatchError, ServerState
from tritonembed_protocol.space import SPACE

ROWS = 400
FLOOD, OTHER = Caller("flood"), Caller("other")


def sentences(name, count=ROWS):
    return [b"%s %d %s" % (name.encode(), number, b"word " * 40) for number in range(count)]


LARGEST = len(infer_request(*sentences("flood")).SerializeToString())


def large(plane, name, caller=FLOOD, count=ROWS, **options):
    return asyncio.ensure_future(plane.infer(*sentences(name, count), caller=caller, timeout=60, **options))


async def inside(fake, count=1):
    await asyncio.wait_for(fake.wait_inside(count), 20)


def seen(fake):
    """The first word of each request that a server received, in order."""
    return [texts(request)[0].split()[0].decode() for request in fake.requests]


async def all_wait(plane, count):
    while plane.pool.waiting != count:
        await asyncio.sleep(0)


async def pause(turns=50):
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_server_holds_a_bounded_amount_of_work_whatever_waits():
    async with data_plane(1) as plane:
        [server] = plane.pool.servers()
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(8)]
        await inside(plane.fakes[0], 2)
        await pause()
        size = server.window.size(LOOSE_S)
        assert size / 2 < plane.table.work(0) <= size + server.window.part(LOOSE_S)
        assert 10 * size < 8 * LARGEST
        plane.fakes[0].release()
        await asyncio.gather(*flood)


async def test_an_answer_in_parts_is_the_answer_of_one_server_byte_for_byte():
    async with data_plane(2) as plane:
        message = infer_request(*sentences("flood"), truncate="END")
        message.id = "mine"
        encoded = message.SerializeToString()
        options = {"timeout": 20, "metadata": [("traceparent", "00-1")], "caller": FLOOD}
        in_parts = await plane.dispatcher.infer(encoded, **options)
        assert all(len(fake.requests) > 1 for fake in plane.fakes)
        assert {found["traceparent"] for fake in plane.fakes for found in fake.metadata} == {"00-1"}
        for server in plane.pool.servers():
            server.window._rate = 1e9
        before = len(plane.fakes[0].requests) + len(plane.fakes[1].requests)
        assert await plane.dispatcher.infer(encoded, **options) == in_parts
        assert len(plane.fakes[0].requests) + len(plane.fakes[1].requests) == before + 1
        assert plane.dispatcher.meter.collect().total.codes == {grpc.StatusCode.OK: 2}


async def test_a_single_sentence_of_another_caller_passes_the_flood():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(8)]
        await inside(plane.fakes[0], 2)
        # It need not even wait until a part is done.
        other = asyncio.ensure_future(plane.infer(b"single", caller=OTHER))
        await inside(plane.fakes[0], 3)
        assert seen(plane.fakes[0]) == ["flood", "flood", "single"]
        plane.fakes[0].release()
        await asyncio.gather(other, *flood)


@pytest.mark.parametrize("priority", [1, 2])
async def test_large_requests_take_turns_between_callers_and_by_priority(priority):
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(6)]
        await inside(plane.fakes[0], 2)
        other = large(plane, "other", OTHER, priority=priority)
        await all_wait(plane, 7)
        plane.fakes[0].release()
        await other
        assert sum(not task.done() for task in flood) >= (5 if priority == 1 else 4)
        names = seen(plane.fakes[0])
        first, last = names.index("other"), len(names) - names[::-1].index("other")
        between = names[first:last]
        # Of the parts between its first and its last, all but a few are its own with priority 1, else half.
        share = between.count("other") / len(between)
        assert 0.8 < share <= 1.0 if priority == 1 else 0.4 < share < 0.6
        await asyncio.gather(*flood)


@pytest.mark.parametrize("kind", ["int64", "uint64"])
async def test_priority_of_either_type_holds_within_one_connection(kind):
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(6)]
        await inside(plane.fakes[0], 2)
        message = infer_request(*sentences("urgent"))
        setattr(message.parameters["priority"], f"{kind}_param", 1)
        encoded = message.SerializeToString()
        urgent = asyncio.ensure_future(plane.dispatcher.infer(encoded, timeout=60, metadata=(), caller=FLOOD))
        await all_wait(plane, 7)
        plane.fakes[0].release()
        await urgent
        assert sum(not task.done() for task in flood) >= 5
        await asyncio.gather(*flood)
        buckets = {key: sum(waits.buckets) for key, waits in plane.dispatcher.meter.collect().waits.items()}
        assert buckets == {1: 1, 2: 6}


async def test_small_and_large_requests_together_make_the_window_tight():
    async with data_plane(1) as plane:
        plane.fakes[0].latency = 0.001
        queue = plane.dispatcher._queue
        await large(plane, "flood")
        assert queue._seconds() == LOOSE_S
        await plane.infer(b"single")
        assert queue._seconds() == TIGHT_S


async def test_a_request_that_cannot_be_in_time_is_refused_at_once():
    async with data_plane(1) as plane:
        [server] = plane.pool.servers()
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(4)]
        await inside(plane.fakes[0], 2)
        server.window._highest.append((plane.dispatcher._clock(), 10_000.0))
        late = r"it would end after its deadline passed: about [\d.]+ s of work at 2,500 tokens per second, and 5.0 s"
        for count in (ROWS, 100):
            with pytest.raises(DispatchError, match=late) as caught:
                await asyncio.wait_for(plane.infer(*sentences("late", count), caller=FLOOD, timeout=5), 20)
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        # Another caller's turn comes sooner.
        other = asyncio.ensure_future(plane.infer(*sentences("other", 20), caller=OTHER, timeout=30))
        await pause()
        assert not other.done()
        plane.fakes[0].release()
        await asyncio.gather(other, *flood)


async def test_small_requests_go_on_beside_a_huge_text():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        huge = asyncio.ensure_future(plane.infer("x" * 3_000_000, caller=FLOOD))
        await inside(plane.fakes[0], 1)
        small = asyncio.ensure_future(plane.infer("small", caller=OTHER))
        await inside(plane.fakes[0], 2)
        plane.fakes[0].release()
        await asyncio.gather(huge, small)
        assert plane.pool.servers()[0].load == 0


async def test_a_request_that_waits_until_its_deadline_ends_there():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        flood = large(plane, "flood")
        await inside(plane.fakes[0], 2)
        for count in (ROWS, 60):
            with pytest.raises(DispatchError, match="the deadline passed") as caught:
                await plane.infer(*sentences("late", count), timeout=0.05, caller=FLOOD)
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        plane.fakes[0].release()
        await flood
        assert "late" not in seen(plane.fakes[0])


async def test_a_cancelled_request_leaves_the_queue_and_its_parts_leave_the_servers():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        tasks = [large(plane, "flood"), large(plane, "flood", count=60), large(plane, "flood")]
        await inside(plane.fakes[0], 2)
        await pause()
        assert plane.pool.waiting == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert plane.is_idle()
        await inside(plane.fakes[0], 0)
        plane.fakes[0].release()


@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_a_task_that_is_cancelled_as_its_turn_comes_frees_its_place(cancelled_first):
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        flood = large(plane, "flood")
        await inside(plane.fakes[0], 2)
        others = [large(plane, "other", OTHER, count=60), large(plane, "other", OTHER)]
        await pause()
        plane.pool.servers()[0].window._rate = 1e9
        if not cancelled_first:
            plane.dispatcher._queue.pump()
        for task in (flood, *others):
            task.cancel()
        plane.dispatcher._queue.pump()
        await asyncio.gather(flood, *others, return_exceptions=True)
        assert plane.is_idle()
        plane.fakes[0].release()


async def test_the_end_of_a_drain_ends_what_waits():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        tasks = [large(plane, "flood"), large(plane, "flood", count=60)]
        await inside(plane.fakes[0], 2)
        plane.admission.drain()
        plane.dispatcher.cut()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert [error.code for error in ended] == [grpc.StatusCode.UNAVAILABLE] * 2


async def test_a_part_on_a_broken_connection_goes_to_another_server_and_the_request_is_answered():
    async with data_plane(2) as plane:
        plane.fakes[0].fail_first = 1
        response = await large(plane, "flood")
        assert list(response.outputs[0].shape) == [ROWS, 1]


async def test_if_a_server_dies_with_a_part_the_request_goes_on_whole_and_two_deaths_are_its_end(monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.data.dispatcher.VERDICT_S", 0.2)
    async with data_plane(3) as plane:
        plane.fakes[0].hang()
        plane.fakes[1].hang()
        plane.policy.prefer = "0"
        task = large(plane, "deadly")
        await inside(plane.fakes[0], 2)
        plane.policy.prefer = "1"
        plane.report(0, ServerState.STARTING, deaths=1, restarts=1)
        await inside(plane.fakes[1], 1)
        while not any(len(texts(request)) == ROWS for request in plane.fakes[1].requests):
            await asyncio.sleep(0.001)
        plane.report(1, ServerState.STARTING, deaths=1, restarts=1)
        with pytest.raises(DispatchError, match="two servers died") as caught:
            await task
        assert caught.value.code is grpc.StatusCode.INTERNAL
        assert len(plane.quarantined) == 1
        with pytest.raises(DispatchError, match="two servers died"):
            await large(plane, "deadly")
        assert len(plane.quarantined[0][1]) == failover.MOST_SERVERS


async def test_the_error_about_a_sentence_counts_as_its_sender_does():
    async with data_plane(1) as plane:
        whole = plane.fakes[0]._infer

        async def infer(request, context):
            for index, text in enumerate(texts(request)):
                if text.startswith(b"flood 300 "):
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"sentence {index} is wrong")
            return await whole(request, context)

        plane.fakes[0]._infer = infer
        with pytest.raises(DispatchError, match="sentence 300 is wrong"):
            await large(plane, "flood")


@pytest.mark.parametrize("asked", [None, "one", "other"])
async def test_all_parts_of_a_request_are_of_one_space(asked):
    async with data_plane(2) as plane:
        for number, space in enumerate(("one", "other")):
            plane.fakes[number].space = space
            plane.report(number, space=space)
        message = infer_request(*sentences("flood"), **({SPACE: asked} if asked else {})).SerializeToString()
        options = {"timeout": 60, "metadata": (), "caller": FLOOD}
        answer = await plane.dispatcher.infer(message, **options)
        counts = [len(fake.requests) for fake in plane.fakes]
        assert min(counts) == 0
        assert max(counts) > 1
        space = asked or ("one", "other")[counts.index(max(counts))]
        assert spaces.in_answer(answer) == space
        other = infer_request(*sentences("flood"), **{SPACE: "a third"}).SerializeToString()
        with pytest.raises(DispatchError, match=SPACE):
            await plane.dispatcher.infer(other, **options)


async def test_workers_share_a_server_by_the_weight_of_their_callers():
    async with data_plane(1, workers=2) as plane:
        plane.fakes[0].hang()
        flood = [large(plane, "flood") for _ in range(4)]
        await inside(plane.fakes[0], 2)
        [server] = plane.pool.servers()
        # The other worker: its own row of the table, its own connections, nothing sent yet.
        row = plane.table.row(1)
        pool = type(plane.pool)(row, 100, lambda *_: None)
        pool.update(plane.views)
        other = TritonDispatcher(pool, plane.policy, type(plane.admission)(row, 100, 1 << 30), 20)
        message = infer_request(*sentences("other")).SerializeToString()
        theirs = asyncio.ensure_future(other.infer(message, timeout=60, metadata=(), caller=OTHER))
        await inside(plane.fakes[0], 3)
        await pause()
        # The first worker has filled the window; the second has its half of it nevertheless, which is one part.
        size, part = server.window.size(LOOSE_S), server.window.part(LOOSE_S)
        assert part / 2 < row.work(0) < 1.2 * part
        assert plane.row.work(0) > 1.5 * part
        assert size == 2 * part
        plane.fakes[0].release()
        await asyncio.gather(theirs, *flood)
        await pool.close()
