"""Token buckets, limits in flight, and the table that workers share."""

import fcntl
import multiprocessing
import os
import threading

import grpc
import pytest
from tests.fakes.tenants import CountedTime, tenant

from tritonembed_manager.router.data.quotas import Quotas, QuotaTable, duration, estimate
from tritonembed_manager.router.data.tenants import ModelLimits
from tritonembed_manager.router.interfaces import DispatchError


def enter_until_refused(quotas, who, tokens=1):
    """The number of requests that were admitted, and the refusal."""
    count = 0
    while True:
        try:
            end(quotas, quotas.enter(who, tokens))
        except DispatchError as error:
            return count, error
        count += 1


def end(quotas, charge, *, tokens=None, requests=1, answered=True):
    tokens = charge.tokens if tokens is None else tokens
    quotas.leave(charge, answered=answered, tokens=tokens, requests=requests, charged=tokens)


def test_requests_per_minute_come_back_evenly_and_the_refusal_says_when():
    time, who = CountedTime(), tenant(requests_per_minute=60)
    count, error = enter_until_refused(time.quotas, who)
    assert (count, error.code, error.retry_after) == (60, grpc.StatusCode.RESOURCE_EXHAUSTED, pytest.approx(1))
    time.clock.now += error.retry_after
    assert enter_until_refused(time.quotas, who)[0] == 1
    time.clock.now += 3600
    assert enter_until_refused(time.quotas, who)[0] == 60


def test_tokens_per_minute_are_charged_with_what_the_answer_has():
    time, who = CountedTime(), tenant(tokens_per_minute=600)
    end(time.quotas, time.quotas.enter(who, 100), tokens=500)
    assert time.quotas.buckets(who)[1].remaining == 100
    with pytest.raises(DispatchError) as caught:
        time.quotas.enter(who, 130)
    assert caught.value.retry_after == pytest.approx(3)
    end(time.quotas, time.quotas.enter(who, 100), tokens=2)
    assert time.quotas.buckets(who)[1].remaining == 98


def test_a_request_larger_than_the_bucket_needs_a_full_one_and_leaves_a_debt():
    time, who = CountedTime(), tenant(tokens_per_minute=60)
    end(time.quotas, time.quotas.enter(who, 600))
    with pytest.raises(DispatchError) as caught:
        time.quotas.enter(who, 600)
    assert caught.value.retry_after == pytest.approx(600)
    time.clock.now += 600
    time.quotas.enter(who, 600)


def test_what_fails_without_being_computed_is_free():
    time, who = CountedTime(), tenant(tokens_per_minute=60, requests_per_minute=1)
    end(time.quotas, time.quotas.enter(who, 50), tokens=0, requests=0, answered=False)
    end(time.quotas, time.quotas.enter(who, 60))
    used = time.table.used(0)
    assert (used.answered, used.failed, used.tokens) == (1, 1, 60)


def test_requests_in_flight_are_limited_over_workers_and_given_back_for_a_dead_one():
    time, who = CountedTime(workers=2), tenant(max_in_flight=2)
    first, second = time.workers
    charge = first.enter(who, 1)
    second.enter(who, 1)
    with pytest.raises(DispatchError, match="2 requests are in flight"):
        first.enter(who, 1)
    end(first, charge)
    first.enter(who, 1)
    time.table.zero(1)
    first.enter(who, 1)
    assert time.table.used(0).in_flight == 2
    assert (time.table.used(0).over_in_flight, time.table.used(0).refused) == (1, 1)


def test_tenants_share_nothing_and_no_limit_is_no_limit():
    time = CountedTime()
    limited, free = tenant(requests_per_minute=1), tenant("b", 1)
    enter_until_refused(time.quotas, limited)
    for _ in range(1000):
        time.quotas.enter(free, 10**9)
    assert time.quotas.headers([free]) == []


def test_a_lower_limit_counts_at_once():
    time = CountedTime()
    enter_until_refused(time.quotas, tenant(requests_per_minute=60))
    assert enter_until_refused(time.quotas, tenant(requests_per_minute=6))[0] == 0


def test_limits_for_a_model_stand_beside_those_of_the_tenant():
    time = CountedTime()
    bge = ModelLimits("a", "bge", tokens_per_minute=100, requests_per_minute=3, slot=1)
    who = tenant(tokens_per_minute=1000, requests_per_minute=5, max_in_flight=2, model_limits=(bge,))
    for _ in range(3):
        for charge in time.quotas.enter_all([who, bge], 10):
            end(time.quotas, charge, tokens=20)
    assert dict(time.quotas.headers([who, bge])) | {
        "x-ratelimit-reset-requests": "",
        "x-ratelimit-reset-tokens": "",
    } == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "40",
        "x-ratelimit-reset-tokens": "",
    }
    with pytest.raises(DispatchError, match="this tenant's 3 requests per minute for bge are used up"):
        time.quotas.enter_all([who, bge], 1)
    # What one limit refuses costs nothing under the others.
    assert [bucket.remaining for bucket in time.quotas.buckets(who)] == [2, 940]
    time.clock.now += 60
    held = [time.quotas.enter_all([who], 1) for _ in range(2)]
    with pytest.raises(DispatchError, match="this tenant's 2 requests are in flight"):
        time.quotas.enter_all([who, bge], 50)
    assert [bucket.remaining for bucket in time.quotas.buckets(bge)] == [3, 100]
    assert (time.table.used(1).in_flight, time.table.used(1).failed, len(held)) == (0, 0, 2)


def test_the_headers_are_those_of_openai():
    time, who = CountedTime(), tenant(tokens_per_minute=6000, requests_per_minute=60)
    end(time.quotas, time.quotas.enter(who, 1500))
    assert dict(time.quotas.headers([who])) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }


@pytest.mark.parametrize(("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (7.5, "7.5s"), (360, "6m0s")])
def test_durations_have_openais_form(seconds, text):
    assert duration(seconds) == text


def test_the_estimate_is_never_nothing():
    assert (estimate(0), estimate(400)) == (1, 100)


def _hammer(fd, worker, counts):
    quotas, who = Quotas(QuotaTable(fd), worker, lambda: 1.0), tenant(requests_per_minute=3000)
    counts[worker] = enter_until_refused(quotas, who)[0]


def test_processes_together_admit_exactly_the_quota():
    table = QuotaTable.create(4, slots=2)
    fork = multiprocessing.get_context("fork")
    counts = fork.Array("i", 4)
    processes = [fork.Process(target=_hammer, args=(table.fd, index, counts)) for index in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    # All but one booking of a worker that lost its turn for long.
    assert sum(counts) == pytest.approx(3000, abs=4)
    assert table.used(0).answered == pytest.approx(3000, abs=4)


def test_a_process_that_keeps_the_lock_holds_nobody_up():
    table = QuotaTable.create(1, slots=2)
    over = os.pipe()
    child = os.fork()
    if not child:
        fcntl.lockf(table.fd, fcntl.LOCK_EX, 1, 0)
        os.write(over[1], b"held")
        threading.Event().wait()
    try:
        os.read(over[0], 4)
        assert enter_until_refused(Quotas(table, 0, lambda: 1.0), tenant(requests_per_minute=2))[0] == 2
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
