"""Requests through the dispatcher to fake servers that break in every way."""

import asyncio
import random
from collections import Counter

import grpc
import pytest
from tests.fakes.data_plane import CALLER, data_plane
from tests.fakes.triton import NOT_LOADED, STUB_DIED, infer_request, infer_response, vector
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.interfaces import DispatchError, ServerState
from tritonembed_protocol.policies import RetryBudget


def answered(plane):
    return [len(fake.requests) for fake in plane.fakes]


async def wait_waiting(plane, count):
    while plane.pool.waiting != count:
        await asyncio.sleep(0)


async def refusal(awaitable):
    with pytest.raises(DispatchError) as caught:
        await awaitable
    return caught.value


async def test_an_answer_is_returned_unchanged():
    async with data_plane(1) as plane:
        response = await plane.infer(b"one", b"two words")
        assert [output.name for output in response.outputs] == ["embedding", "num_tokens"]
        assert list(response.outputs[0].shape) == [2, 1]


async def test_metadata_is_passed_on_except_that_of_the_connection():
    async with data_plane(1) as plane:
        await plane.infer(metadata=[("traceparent", "00-1-2-03"), ("user-agent", "someone"), ("grpc-trace-bin", b"x")])
        assert plane.fakes[0].metadata[0]["traceparent"] == "00-1-2-03"
        assert "someone" not in plane.fakes[0].metadata[0]["user-agent"]


async def test_no_secret_between_caller_and_manager_reaches_a_server():
    secrets = ("authorization", "x-api-key", "proxy-authorization", "cookie")
    async with data_plane(1) as plane:
        await plane.infer(metadata=[("x-team", "a"), *((name, "secret") for name in secrets)])
        [metadata] = plane.fakes[0].metadata
        assert metadata["x-team"] == "a"
        assert "secret" not in metadata.values()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-note", "caf\xe9"),
        ("x-note", "\x01"),
        ("x-note", "a\r\nb: c"),
        ("x-note", "\x7f"),
        ("tracestate", "caf\xe9"),
        ("x-note", b"bytes"),
        ("x note", "space in its name"),
        ("x-n\xf6te", "value"),
        ("", "value"),
    ],
)
async def test_metadata_that_cannot_be_passed_on_is_refused_at_once_and_takes_no_place(name, value):
    async with data_plane(1, max_in_flight=1) as plane:
        for _ in range(3):
            error = await asyncio.wait_for(refusal(plane.infer(metadata=[(name, value)], timeout=None)), 60)
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "passed on" in error.message
            assert "caf" not in error.message
        total = plane.dispatcher.meter.collect().total
        assert (dict(total.codes), total.timed) == ({grpc.StatusCode.INVALID_ARGUMENT: 3}, 0)
        await plane.infer()
        assert answered(plane) == [1]


async def test_requests_that_would_harm_a_server_never_reach_one():
    async with data_plane(1, max_in_flight=1) as plane:
        bad = infer_request(b"a text")
        bad.outputs.add(name="embedding").parameters["classification"].int64_param = 1
        error = await refusal(plane.dispatcher.infer(bad.SerializeToString(), timeout=5, metadata=(), caller=CALLER))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        bad = infer_request(b"a text")
        bad.inputs[0].parameters["shared_memory_region"].string_param = "a region"
        error = await refusal(plane.dispatcher.infer(bad.SerializeToString(), timeout=5, metadata=(), caller=CALLER))
        assert error.code is grpc.StatusCode.UNIMPLEMENTED
        assert answered(plane) == [0]


@pytest.mark.parametrize("name", ["embedding\0x", "", "../embedding", "a" * 256, "\x1b[31m"])
async def test_a_name_that_triton_would_misread_is_refused(name):
    async with data_plane(1) as plane:
        bad = infer_request(b"a text")
        bad.model_name = name
        error = await refusal(plane.dispatcher.infer(bad.SerializeToString(), timeout=5, metadata=(), caller=CALLER))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        bad.model_name, bad.model_version = "embedding", "1x"
        error = await refusal(plane.dispatcher.infer(bad.SerializeToString(), timeout=5, metadata=(), caller=CALLER))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert answered(plane) == [0]


@pytest.mark.parametrize("how", ["too few", "empty"])
async def test_a_request_with_an_incomplete_answer_is_retried_on_another_server(how):
    async with data_plane(2) as plane:

        async def infer(request, context):
            if how == "empty":
                return service_pb2.ModelInferResponse()
            return infer_response([vector(b"a text")], [2])

        plane.fakes[0]._infer = infer
        response = await plane.infer(b"one", b"two", b"three")
        assert list(response.outputs[0].shape) == [3, 1]
        assert answered(plane) == [1, 1]
        assert plane.suspects[0][0] == "0"


async def test_a_broken_server_is_ejected_and_another_answers():
    async with data_plane(2) as plane:
        plane.fakes[0].fail_first = 1
        for _ in range(3):
            await plane.infer()
        assert answered(plane) == [1, 3]
        assert [key for key, _ in plane.suspects] == ["0"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.INTERNAL, STUB_DIED),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.CANCELLED, "the server shut down"),
        # Triton's answer while it ends.
        (grpc.StatusCode.NOT_FOUND, NOT_LOADED),
    ],
)
async def test_these_errors_count_as_a_broken_server(code, message):
    async with data_plane(2) as plane:
        plane.fakes[0].fail_first, plane.fakes[0].failure = 1, (code, message)
        await plane.infer()
        assert answered(plane) == [1, 1]


async def test_a_model_that_every_server_has_unloaded_is_not_found():
    async with data_plane(2) as plane:
        for fake in plane.fakes:
            fake.fail_first, fake.failure = 1, (grpc.StatusCode.NOT_FOUND, NOT_LOADED)
        error = await refusal(plane.infer())
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert answered(plane) == [1, 1]


async def test_a_server_that_takes_a_while_to_connect_is_not_broken():
    async with data_plane(2) as plane:
        plane.fakes[0].accept_after(1.5)
        await plane.infer()
        assert answered(plane) == [1, 0]
        assert not plane.suspects


@pytest.mark.parametrize(
    ("code", "message", "seen"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "text is not UTF-8", grpc.StatusCode.INVALID_ARGUMENT),
        (grpc.StatusCode.INTERNAL, "the model failed", grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", grpc.StatusCode.DEADLINE_EXCEEDED),
        # Triton 2.51's message if /dev/shm is full.
        (
            grpc.StatusCode.INTERNAL,
            "Failed to process the request(s) for model 'embedder_0_0', message: Failed to increase the shared memory "
            "pool size for key 'tritonembed_1_2_3' to 1048576 bytes. Error: No space left on device",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
async def test_these_errors_are_not_retried(code, message, seen):
    async with data_plane(2) as plane:
        plane.fakes[0].fail_first, plane.fakes[0].failure = 1, (code, message)
        error = await refusal(plane.infer())
        assert error.code is seen
        assert (error.retry_after is not None) == (seen is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert answered(plane) == [1, 0]
        assert not plane.suspects


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_reason():
    async with data_plane(1) as plane:
        reason = "it would end after its deadline passed: about 90.0 s of work, and 5.0 s are left"
        plane.fakes[0].fail_first = 1
        plane.fakes[0].failure = (grpc.StatusCode.UNAVAILABLE, f"in ensemble 'embedding', {reason}")
        error = await refusal(plane.infer())
        assert (error.code, error.message) == (grpc.StatusCode.DEADLINE_EXCEEDED, reason)


async def test_all_requests_fail_over_after_a_crash_which_is_charged_once():
    budget = RetryBudget(share=0, least=1)
    async with data_plane(2, budget=budget) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(64)
        await plane.fakes[0].wait_inside(64)
        await plane.fakes[0].crash()
        await asyncio.gather(*tasks)
        assert answered(plane) == [64, 64]
        tallies = plane.dispatcher.meter.collect()
        assert (tallies.retries, tallies.moves) == (1, 63)


@pytest.mark.parametrize(
    "state", [ServerState.UNHEALTHY, ServerState.STARTING, ServerState.REFUSED, ServerState.FAILED]
)
async def test_requests_fail_over_when_the_parent_reports_their_server_as_down(state):
    async with data_plane(2, budget=RetryBudget(share=0, least=0)) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(8)
        await plane.fakes[0].wait_inside(8)
        plane.report(0, state)
        await asyncio.gather(*tasks)
        await plane.fakes[0].wait_inside(0)
        assert plane.fakes[0].cancelled == 8
        assert plane.table.in_flight(0) == 0


async def test_requests_on_a_draining_server_finish_there():
    async with data_plane(2) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(3)
        await plane.fakes[0].wait_inside(3)
        plane.report(0, ServerState.DRAINING)
        await plane.infer()
        plane.fakes[0].release()
        await asyncio.gather(*tasks)
        assert answered(plane) == [3, 1]


async def test_requests_on_a_server_that_left_finish_there():
    async with data_plane(2) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(3)
        await plane.fakes[0].wait_inside(3)
        plane.pool.update(plane.views[1:])
        plane.fakes[0].release()
        await asyncio.gather(*tasks)
        assert answered(plane) == [3, 0]


async def test_requests_on_a_server_fail_over_when_its_stub_dies():
    async with data_plane(2, budget=RetryBudget(share=0, least=1)) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(4)
        await plane.fakes[0].wait_inside(4)
        plane.fakes[0].unhealthy_after = 0
        await asyncio.gather(plane.infer(), *tasks)
        assert answered(plane) == [5, 5]
        assert plane.suspects == [("0", "INTERNAL: stub died")]


async def test_a_request_is_never_sent_to_the_same_server_twice(short_verdict):
    async with data_plane(2, first_pause=0.001) as plane:
        for fake in plane.fakes:
            fake.fail_first = 100
        error = await refusal(plane.infer())
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert answered(plane) == [1, 1]


async def test_requests_wait_for_the_only_server_to_restart():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(16)
        await plane.fakes[0].wait_inside(16)
        await plane.fakes[0].crash()
        await wait_waiting(plane, 16)
        plane.report(0, ServerState.STARTING)
        await wait_waiting(plane, 16)
        await plane.fakes[0].come_back()
        plane.fakes[0].release()
        plane.report(0, restarts=1)
        await asyncio.gather(*tasks)


async def test_the_retry_budget_ends_retries():
    async with data_plane(2, budget=RetryBudget(share=0, least=0)) as plane:
        plane.fakes[0].fail_first = 1
        error = await refusal(plane.infer())
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert answered(plane) == [1, 0]


async def test_a_request_that_breaks_every_server_is_given_up(short_verdict):
    async with data_plane(6) as plane:
        for fake in plane.fakes:
            fake.fail_first = 1
        assert (await refusal(plane.infer())).code is grpc.StatusCode.UNAVAILABLE
        assert answered(plane) == [1, 1, 1, 1, 0, 0]


async def test_a_place_that_another_worker_frees_is_found():
    async with data_plane(2, workers=2, per_server=1) as plane:
        plane.fakes[0].hang()
        other = plane.table.row(1)
        other.begin(1, 5)
        (task,) = plane.start()
        await plane.fakes[0].wait_inside(1)
        plane.report(0, ServerState.UNHEALTHY)
        await wait_waiting(plane, 1)
        other.end(1, 5)
        await asyncio.wait_for(task, 60)
        assert answered(plane) == [1, 1]


async def test_requests_wait_while_no_server_is_ready():
    async with data_plane(1) as plane:
        plane.report(0, ServerState.STARTING)
        tasks = plane.start(5)
        await wait_waiting(plane, 5)
        plane.report(0)
        await asyncio.gather(*tasks)


async def test_requests_wait_until_just_before_their_deadline_and_fail_with_the_reason(monkeypatch):
    async with data_plane(1) as plane:
        plane.report(0, ServerState.STARTING)
        waits = []
        wait = plane.pool.waiters.wait
        monkeypatch.setattr(plane.pool.waiters, "wait", lambda left, *rest: waits.append(left) or wait(left, *rest))
        refused = await refusal(plane.infer(timeout=0.5))
        # The dispatcher gives up before the caller's own deadline, which has no reason.
        assert 0 < waits[0] <= 0.48
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert refused.message == "no server became ready before the deadline"
        assert answered(plane) == [0]


async def test_nothing_starts_after_its_deadline():
    async with data_plane(1) as plane:
        assert (await refusal(plane.infer(timeout=0))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answered(plane) == [0]


async def test_the_deadline_ends_a_request_that_hangs():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        assert (await refusal(plane.infer(timeout=0.05))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert plane.is_idle()
        assert not plane.suspects


async def test_triton_receives_the_remaining_time():
    async with data_plane(1) as plane:
        await plane.infer(timeout=5)
        (request,) = plane.fakes[0].requests
        assert 4e6 < request.parameters["timeout"].int64_param <= 5e6
        assert 4 < plane.fakes[0].time_left[0] < 5.1


@pytest.mark.parametrize(("asked", "least", "most"), [(60_000_000, 4e6, 5e6), (1_000_000, 0.5e6, 1e6), (0, 4e6, 5e6)])
async def test_the_shorter_of_both_timeouts_counts(asked, least, most):
    async with data_plane(1) as plane:
        message = infer_request(b"text", timeout=asked).SerializeToString()
        await plane.dispatcher.infer(message, timeout=5, metadata=(), caller=CALLER)
        assert least < plane.fakes[0].requests[0].parameters["timeout"].int64_param <= most


async def test_the_manager_has_a_timeout_of_its_own():
    async with data_plane(1, timeout=3) as plane:
        await plane.infer(timeout=None)
        assert 2 < plane.fakes[0].time_left[0] < 3.1


def part(plane, admitted):
    message = infer_request(b"text").SerializeToString()
    return plane.dispatcher.infer(message, timeout=None, metadata=(), caller=CALLER, admitted=admitted)


async def test_the_parts_of_a_request_are_admitted_counted_and_drained_as_one():
    async with data_plane(1, max_in_flight=1) as plane:
        with plane.dispatcher.admitted(1000, timeout=None, caller=CALLER) as admitted:
            assert (plane.table.admitted(), plane.table.admitted_bytes()) == (1, 1000)
            await asyncio.gather(part(plane, admitted), part(plane, admitted))
            assert (await refusal(plane.infer())).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            plane.admission.drain()
            draining = asyncio.ensure_future(plane.admission.drained())
            await part(plane, admitted)
            assert not draining.done()
        await draining
        assert (await refusal(plane.infer())).code is grpc.StatusCode.UNAVAILABLE
        codes = plane.dispatcher.meter.collect().total.codes
        assert [codes[code] for code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)] == [1, 1]
        assert answered(plane) == [3]


async def test_the_parts_of_a_request_have_one_deadline():
    now = [0.0]
    async with data_plane(1, timeout=10, clock=lambda: now[0]) as plane:
        with plane.dispatcher.admitted(8, timeout=None, caller=CALLER) as admitted:
            for now[0] in (1, 6):
                await part(plane, admitted)
            now[0] = 10
            assert (await refusal(part(plane, admitted))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        asked = [request.parameters["timeout"].int64_param for request in plane.fakes[0].requests]
        assert asked == [9_000_000, 4_000_000]


async def test_the_first_part_never_waits_for_a_place_but_the_others_do():
    async with data_plane(1, per_server=1) as plane:
        plane.fakes[0].hang()
        with plane.dispatcher.admitted(8, timeout=10, caller=CALLER) as admitted:
            parts = [asyncio.ensure_future(part(plane, admitted)) for _ in range(2)]
            await plane.fakes[0].wait_inside(1)
            assert (await refusal(plane.infer())).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            plane.fakes[0].release()
            await asyncio.gather(*parts)


async def test_a_cancel_frees_the_place_at_once():
    async with data_plane(1) as plane:
        plane.fakes[0].hang()
        (task,) = plane.start()
        await plane.fakes[0].wait_inside(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert plane.is_idle()
        await plane.fakes[0].wait_inside(0)
        assert plane.fakes[0].cancelled == 1


async def test_a_cancel_at_any_point_leaves_nothing_behind():
    async with data_plane(2) as plane:
        for steps in range(40):
            plane.fakes[0].fail_first = steps % 2
            plane.report(0, ServerState.UNHEALTHY)
            plane.report(0)
            (task,) = plane.start()
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert plane.is_idle()


async def test_a_cancel_wins_over_a_failover_at_the_same_time():
    async with data_plane(2) as plane:
        plane.fakes[0].hang()
        (task,) = plane.start()
        await plane.fakes[0].wait_inside(1)
        plane.report(0, ServerState.UNHEALTHY)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert answered(plane) == [1, 0]


async def test_other_methods_are_sent_to_any_ready_server_or_to_the_given_server():
    async with data_plane(2) as plane:
        await plane.dispatcher.call("ServerMetadata", b"", timeout=5)
        await plane.dispatcher.call("ServerMetadata", b"", timeout=5, server="1")
        assert [fake.calls for fake in plane.fakes] == [["ServerMetadata"], ["ServerMetadata"]]
        error = await refusal(plane.dispatcher.call("ModelConfig", b"\x0a\x01x", timeout=5))
        assert error.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_counters_return_to_zero_and_no_answer_is_wrong(seed):
    chance = random.Random(seed)
    async with data_plane(3, first_pause=0.005, max_in_flight=300, budget=RetryBudget(share=1)) as plane:
        plane.policy.choose = lambda candidates: chance.randrange(len(candidates))

        async def one(number):
            text = b"%d" % number
            response = await plane.infer(text, timeout=chance.choice([0.02] + 9 * [10]))
            assert response.raw_output_contents[0][4:] == vector(text).tobytes()

        async def break_something():
            server = chance.randrange(3)
            fake, restarts = plane.fakes[server], plane.views[server].restarts
            fault = chance.randrange(5)
            if fault == 0:
                await fake.crash()
                plane.report(server, ServerState.STARTING)
                await fake.come_back()
                plane.report(server, restarts=restarts + 1)
            elif fault == 1:
                plane.report(server, ServerState.UNHEALTHY)
                plane.report(server)
            elif fault == 2:
                fake.fail_first, fake.failure = 1, (grpc.StatusCode.INTERNAL, STUB_DIED)
            elif fault == 3:
                fake.reset()
            else:
                fake.fail_first, fake.failure = 1, (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

        tasks = []
        for number in range(300):
            tasks.append(asyncio.ensure_future(one(number)))
            if number % 15 == 0:
                # On a slow machine, the next fault would come before any answer and hit the requests that failed over.
                while sum(not task.done() for task in tasks) >= 40:
                    await asyncio.sleep(0)
                await break_something()
            if number % 20 == 0:
                chance.choice(tasks).cancel()
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
        ends = Counter(map(_end_of, await asyncio.gather(*tasks, return_exceptions=True)))
        code = grpc.StatusCode
        foreseen = {"answered", "cancelled", code.RESOURCE_EXHAUSTED, code.DEADLINE_EXCEEDED, code.UNAVAILABLE}
        assert set(ends) <= foreseen
        assert ends["answered"] > 200


def _end_of(result):
    if isinstance(result, asyncio.CancelledError):
        return "cancelled"
    if isinstance(result, DispatchError):
        return result.code
    return "answered" if result is None else result
