"""Rates and latencies from the workers' counts."""

import grpc
from tests.fakes.clock import Clock

from tritonembed_manager.router.control.status import Traffic


def test_counts_of_all_workers_add_up_and_rates_are_those_of_the_last_ten_seconds():
    clock = Clock(0.0)
    traffic = Traffic(clock)
    for clock.now in range(20):
        for _worker in range(2):
            a = {"requests": 5, "errors": 1, "latencies": [1.0, 3.0], "ejections": 2}
            traffic.add({"requests": 4, "retries": 1, "moves": 2, "servers": {"a": a, "b": {"requests": 1}}})
    assert (traffic.of("a").requests, traffic.of("a").errors) == (200, 40)
    assert 10 <= traffic.of("a").rate <= 11
    assert traffic.of("a").ejections == 80
    assert (traffic.in_all().requests, traffic.retries, traffic.moves) == (160, 40, 80)
    clock.now += 100
    assert traffic.of("a").rate == 0
    assert traffic.of("a").p50_ms is None
    assert traffic.of("a").requests == 200


def test_percentiles_are_those_of_the_last_minute():
    clock = Clock(0.0)
    traffic = Traffic(clock)
    traffic.add({"servers": {"a": {"requests": 1, "latencies": [9999.0]}}})
    clock.now = 61
    traffic.add({"servers": {"a": {"requests": 100, "latencies": [float(ms) for ms in range(1, 101)]}}})
    assert (traffic.of("a").p50_ms, traffic.of("a").p99_ms) == (51.0, 100.0)


def test_a_server_that_left_is_forgotten():
    traffic = Traffic(Clock(0.0))
    traffic.add({"requests": 2, "servers": {"a": {"requests": 2, "errors": 1}}})
    assert traffic.answered("a") == 1
    traffic.forget("a")
    assert (traffic.answered("a"), traffic.of("a").requests, traffic.in_all().requests) == (0, 0, 2)


def test_cancelled_requests_are_no_sign_of_life():
    traffic = Traffic(Clock(0.0))
    traffic.add({"servers": {"a": {"requests": 5, "errors": 0, "codes": {"CANCELLED": 5}}}})
    assert traffic.answered("a") == 0
    traffic.add({"servers": {"a": {"requests": 2, "errors": 1, "codes": {"OK": 1, "UNAVAILABLE": 1}}}})
    assert traffic.answered("a") == 1


def test_tokens_per_second_are_those_of_the_last_ten_seconds():
    clock = Clock(0.0)
    traffic = Traffic(clock)
    for clock.now in range(20):
        traffic.add(
            {"requests": 1, "tokens": 500, "servers": {"a": {"requests": 1, "tokens": 300}, "b": {"tokens": 200}}}
        )
    assert (traffic.in_all().tokens, traffic.of("a").tokens) == (10_000, 6_000)
    assert 500 <= traffic.in_all().token_rate <= 550
    assert 300 <= traffic.of("a").token_rate <= 330
    clock.now += 100
    assert traffic.in_all().token_rate == 0


def test_errors_are_counted_by_code_and_separately_from_those_of_clients():
    traffic = Traffic(Clock(0.0))
    for _worker in range(2):
        codes = {"OK": 9, "INVALID_ARGUMENT": 2, "CANCELLED": 1, "UNAVAILABLE": 3, "RESOURCE_EXHAUSTED": 1}
        traffic.add({"codes": codes, "servers": {"a": {"codes": {"OK": 9, "INTERNAL": 1}}}})
    found = traffic.in_all()
    assert found.client_errors == {"INVALID_ARGUMENT": 4, "CANCELLED": 2}
    assert found.service_errors == {"UNAVAILABLE": 6, "RESOURCE_EXHAUSTED": 2}
    assert (traffic.of("a").client_errors, traffic.of("a").service_errors) == ({}, {"INTERNAL": 2})


def test_every_code_of_grpc_is_a_client_error_or_a_service_error():
    traffic = Traffic(Clock(0.0))
    traffic.add({"codes": {code.name: 1 for code in grpc.StatusCode}})
    found = traffic.in_all()
    assert {*found.client_errors, *found.service_errors, "OK"} == {code.name for code in grpc.StatusCode}
    assert set(found.service_errors) == {
        "ABORTED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "UNKNOWN",
    }
