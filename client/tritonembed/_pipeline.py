# Generated from _pipeline_aio.py by scripts/unasync.py: edit that file, then run `make unasync`.
"""Requests in flight: bounded, answered in order, given up together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue as Queue
from typing import Any

import grpc

from ._errors import TritonEmbedError, error_from_status
from .request import PreparedRequest


def answers(
    requests: Iterator[PreparedRequest],
    send: Callable[[PreparedRequest], Any],
    again: Callable[[PreparedRequest, TritonEmbedError], PreparedRequest | None],
    max_in_flight: int,
) -> Generator[tuple[PreparedRequest, Any, Any], None, None]:
    """Each request with its response and its call, in the order of the requests.

    ``send`` starts a request and gives gRPC's call. ``again`` gives the request to send instead of a failed request, or
    None to raise its error. At most ``max_in_flight`` requests are unanswered, and at most as
    many answers wait for their turn: a slow request does not idle the server, and memory is bounded. The first error,
    of whichever request, is raised at once. Any end of the generator cancels the requests that are still in flight.
    """
    window: deque[tuple[PreparedRequest, Any]] = deque()
    finished: Queue[Any] = Queue()
    unanswered = 0
    more = True
    refill = False  # each answer given out is replaced by a request, however busy the caller is in between

    def replaced(call: Any) -> int:
        """The number of requests that were sent instead of a finished call. Raises its error if that is none."""
        error = _error(call)
        if error is None:
            return 0
        for place, (request, other) in enumerate(window):
            if other is call:
                following = again(request, error)
                if following is None:
                    raise error
                window[place] = (following, send(following))
                window[place][1].add_done_callback(finished.put_nowait)
                return 1
        return 0  # it was replaced before

    try:
        while True:
            while not finished.empty():
                unanswered += replaced(finished.get_nowait()) - 1
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
                window[-1][1].add_done_callback(finished.put_nowait)
            elif answered and (sent := replaced(window[0][1])):
                unanswered += sent
            elif answered:
                request, call = window.popleft()
                response = call.result()
                yield request, response, call
                refill = True
            elif window:
                unanswered += replaced(finished.get()) - 1
            else:
                return
    finally:
        for _, call in window:
            call.cancel()


def _error(call: Any) -> TritonEmbedError | None:
    """The error of a finished call; None if it succeeded.

    It reads the status: the result of a call that ended because the client was closed would raise an error of another
    kind, as if this caller had been cancelled.
    """
    code = call.code()
    return None if code is grpc.StatusCode.OK else error_from_status(code, call.details())
