"""Large requests are answered one by one, and the number of Triton batches in flight is bounded."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from tritonembed_engine.stub.senders import APART_SENTENCES, LARGE_SENTENCES, Senders

FINAL = 1


@dataclass
class FakeRequest:
    """A request that is its own response sender."""

    sent: list[tuple[Any, int]] = field(default_factory=list)

    def get_response_sender(self) -> "FakeRequest":
        return self

    def send(self, response: Any, flags: int) -> None:
        self.sent.append((response, flags))


@pytest.mark.parametrize(
    ("ahead", "requests", "sentences", "wanted"),
    [
        (3, 2, 2 * LARGE_SENTENCES, True),
        (3, 2, 2 * LARGE_SENTENCES - 1, False),
        (3, 0, 0, False),
        (0, 1, 1024, False),
    ],
)
def test_only_large_requests_use_senders(ahead: int, requests: int, sentences: int, wanted: bool) -> None:
    assert Senders(ahead, FINAL).want(requests, sentences, waiting=False, split=False) is wanted


@pytest.mark.parametrize("ahead", [0, 3, None])
def test_a_small_request_beside_those_that_wait_in_the_engine_holds_up_none_after_it(ahead: int | None) -> None:
    assert Senders(ahead, FINAL).want(1, 1, waiting=True, split=False)
    assert not Senders(ahead, FINAL).want(0, 0, waiting=True, split=False)


@pytest.mark.parametrize(
    ("requests", "sentences", "waiting", "wanted"),
    [
        (1, 1, False, False),
        (LARGE_SENTENCES - 1, LARGE_SENTENCES - 1, False, False),
        (LARGE_SENTENCES, LARGE_SENTENCES, False, True),
        (1, 1, True, True),
        (0, 0, True, False),
    ],
)
def test_if_requests_wait_in_the_engine_only_a_small_first_batch_is_answered_as_a_list(
    requests: int, sentences: int, waiting: bool, wanted: bool
) -> None:
    assert Senders(None, FINAL).want(requests, sentences, waiting=waiting, split=False) is wanted


@pytest.mark.parametrize("ahead", [0, 3, None])
@pytest.mark.parametrize("waiting", [False, True])
def test_small_requests_that_end_within_milliseconds_are_answered_as_a_list(ahead: int | None, waiting: bool) -> None:
    senders = Senders(ahead, FINAL)
    assert not senders.want(64, 64 * LARGE_SENTENCES - 1, waiting=waiting, split=False, short=True)
    assert senders.want(64, 64, waiting=waiting, split=True, short=True)


@pytest.mark.parametrize("ahead", [3, None])
def test_large_requests_use_senders_however_short_they_are(ahead: int | None) -> None:
    assert Senders(ahead, FINAL).want(2, 2 * LARGE_SENTENCES, waiting=False, split=False, short=True)


@pytest.mark.parametrize("ahead", [0, 3, None])
def test_a_split_request_always_uses_a_sender(ahead: int | None) -> None:
    assert Senders(ahead, FINAL).want(1, 2, waiting=False, split=True)


def test_a_split_request_does_not_block_the_next_if_senders_are_used_for_nothing_else() -> None:
    senders, request, future = Senders(0, FINAL), FakeRequest(), Future[int]()
    senders.hand_over([request], [future], [lambda: "answer"], [1])
    assert request.sent == []
    future.set_result(0)
    assert request.sent == [("answer", FINAL)]


def test_no_hand_over_waits_if_requests_wait_in_the_engine() -> None:
    senders, requests = Senders(None, FINAL), [FakeRequest() for _ in range(50)]
    futures = [Future[int]() for _ in requests]
    for request, future in zip(requests, futures, strict=True):
        senders.hand_over([request], [future], [lambda: "answer"], [1])
    for future in futures:
        future.set_result(0)
    senders.finish()
    assert all(request.sent == [("answer", FINAL)] for request in requests)


def test_each_request_gets_its_response_once_when_its_future_is_done() -> None:
    senders, requests = Senders(1, FINAL), [FakeRequest(), FakeRequest()]
    futures: list[Future[int]] = [Future(), Future()]
    senders.hand_over(requests, futures, [lambda: "first", lambda: "second"], [1, 1])
    futures[1].set_exception(ValueError())
    assert [request.sent for request in requests] == [[], [("second", FINAL)]]
    futures[0].set_result(0)
    assert requests[0].sent == [("first", FINAL)]


@pytest.mark.parametrize("ends", [0, 1], ids=["the oldest", "another"])
def test_a_hand_over_waits_until_one_batch_ends_if_too_many_are_ahead(ends: int) -> None:
    senders = Senders(1, FINAL)
    futures = Future[int](), Future[int]()
    senders.hand_over([FakeRequest()], [futures[0]], [lambda: None], [1])
    entered = threading.Event()

    def hand_over() -> None:
        senders.hand_over([FakeRequest()], [futures[1]], [lambda: None], [1])
        entered.set()

    thread = threading.Thread(target=hand_over)
    thread.start()
    assert not entered.wait(0.05)
    futures[ends].set_result(0)
    assert entered.wait(60)
    thread.join()


def test_finish_waits_for_every_request() -> None:
    senders, request, future = Senders(3, FINAL), FakeRequest(), Future[int]()
    senders.hand_over([request], [future], [lambda: "late"], [1])
    timer = threading.Timer(0.05, future.set_result, (0,))
    timer.start()
    senders.finish()
    assert future.done()
    timer.join()
    assert request.sent == [("late", FINAL)]


def test_a_large_answer_does_not_hold_up_the_thread_that_has_the_vectors() -> None:
    senders, request, future = Senders(3, FINAL), FakeRequest(), Future[int]()
    go_on = threading.Event()
    senders.hand_over([request], [future], [lambda: go_on.wait(60)], [APART_SENTENCES])
    future.set_result(0)
    assert request.sent == []
    go_on.set()
    senders.finish()
    assert request.sent == [(True, FINAL)]


def test_an_answer_that_cannot_be_sent_leaves_room_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    senders, future = Senders(1, FINAL), Future[int]()

    def broken() -> None:
        raise OSError("no memory to share")

    senders.hand_over([FakeRequest()], [future], [broken], [APART_SENTENCES])
    future.set_result(0)
    senders.finish()
    assert "an answer could not be sent" in caplog.text
