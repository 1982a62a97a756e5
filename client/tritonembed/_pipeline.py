"""Blocking requests in flight: bounded, answered in order, given up together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from ._errors import error_from_rpc
from ._request import Request


def answers(
    requests: Iterator[Request], send: Callable[[Request], Any], max_in_flight: int
) -> Generator[tuple[Request, Any], None, None]:
    """Each request with its response, in the order of the requests.

    ``send`` starts a request and gives gRPC's future. At most ``max_in_flight`` are unanswered, and at most as many
    answers wait for their turn, so a slow request does not idle the server, and memory is bounded. The first error,
    of whichever request, is raised at once. Whatever ends the generator cancels what is still on its way.
    """
    window: deque[tuple[Request, Any]] = deque()
    finished: SimpleQueue[Any] = SimpleQueue()
    unanswered = 0
    more = True
    refill = False  # each answer given out is made up for by a request, however busy the caller is in between
    try:
        while True:
            unanswered -= _drain(finished)
            answered = bool(window) and window[0][1].done()
            room = more and unanswered < max_in_flight and len(window) < 2 * max_in_flight
            if room and (refill or not answered):
                refill = False
                following = next(requests, None)
                if following is None:
                    more = False
                    continue
                window.append((following, send(following)))
                unanswered += 1
                window[-1][1].add_done_callback(finished.put)
            elif answered:
                request, future = window.popleft()
                _check(future)
                yield request, future.result()
                refill = True
            elif window:
                _check(finished.get())
                unanswered -= 1
            else:
                return
    finally:
        for _, future in window:
            future.cancel()


def _drain(finished: SimpleQueue[Any]) -> int:
    """How many more have finished; raises the error of one that failed."""
    count = 0
    while True:
        try:
            _check(finished.get_nowait())
        except Empty:
            return count
        count += 1


def _check(future: Any) -> None:
    if future.code() is not grpc.StatusCode.OK:
        raise error_from_rpc(future)
