"""KServe's `priority`, if Triton's queues have limits.

Requests of priority 1 go ahead of waiting requests of priority 2, the default, which still have their turn.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tritonembed_perf.server import RunningServer

BULK = ["a text of some words that fill a sentence and then some more of them"] * 256
BULK_REQUESTS = 16


@pytest.fixture(scope="module")
def triton(second_server: Callable[[], RunningServer]) -> Iterator[InferenceServerClient]:
    """A client of a server whose queues have priorities, as on a GPU."""
    with InferenceServerClient(second_server().target) as connected:
        yield connected


def infer(triton: InferenceServerClient, texts: list[str], priority: int = 0) -> None:
    text = InferInput("text", [len(texts), 1], "BYTES")
    text.set_data_from_numpy(np.array([[item.encode()] for item in texts], dtype=np.object_))
    triton.infer("embedding", [text], priority=priority)


def bulk_left_when_one_is_answered(triton: InferenceServerClient, texts: list[str], priority: int) -> int:
    """Sends BULK_REQUESTS, then these texts. Returns the unanswered bulk requests when the texts are answered."""
    with ThreadPoolExecutor(BULK_REQUESTS + 1) as pool:
        bulk = [pool.submit(infer, triton, BULK) for _ in range(BULK_REQUESTS)]
        # Once one bulk request is answered, the others have reached the queue.
        next(as_completed(bulk))
        infer(triton, texts, priority)
        left = sum(not request.done() for request in bulk)
        for request in bulk:
            request.result()
    return left


def test_an_interactive_request_does_not_wait_for_the_bulk_before_it(triton: InferenceServerClient) -> None:
    def goes_ahead() -> bool:
        small = bulk_left_when_one_is_answered(triton, ["hello"], priority=1)
        # A small request gets in between batches anyway. A request of the others' size shows the effect of priority.
        large = bulk_left_when_one_is_answered(triton, BULK, priority=1)
        return small >= BULK_REQUESTS // 2 and large > bulk_left_when_one_is_answered(triton, BULK, priority=2)

    # A busy machine may send a request late once.
    assert any(goes_ahead() for _ in range(3))


def test_bulk_has_its_turn_while_interactive_requests_never_end(triton: InferenceServerClient) -> None:
    enough = threading.Event()
    answered = 0

    def ask_on_and_on() -> None:
        nonlocal answered
        while not enough.is_set():
            infer(triton, ["hello"], priority=1)
            answered += 1

    with ThreadPoolExecutor(8) as pool:
        endless = [pool.submit(ask_on_and_on) for _ in range(8)]
        try:
            for _ in range(3):
                infer(triton, BULK)
        finally:
            enough.set()
        for one in endless:
            one.result()
    assert answered > 0
