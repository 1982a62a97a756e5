"""Large requests are answered through response senders, so that Triton hands over the next batch meanwhile.

`execute` gives its answers as a list, and Triton waits for it; on a GPU that is then idle for a third of the time, and
several replicas take turns to fill it. With senders one replica does: at 64 sentences of 50 tokens a request 2,875 K
tokens/s on an H200 where one replica with lists reaches 1,698 K (without MPS). A sender costs more CPU a request,
so small requests stay with the list. Triton's statistics then show the hand-over; the engine's metrics the work.

A request that is more than one of the engine's batches always goes this way: behind a list nothing could get in between
its batches.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

LARGE_SENTENCES = 32
"""Sentences a request, on average over a Triton batch, from which on senders are the cheaper way."""

AHEAD_WHERE_SPLIT = 3
"""Triton batches with a split request that are let in where senders serve for nothing else."""

MakeResponse = Callable[[], Any]


class Senders:
    """At most `ahead` Triton batches are here beside the one that `execute` brings. 0: senders are for split requests
    alone; None: any number, because requests wait here and not in Triton.

    final: pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL.
    """

    def __init__(self, ahead: int | None, final: int) -> None:
        self._ahead = ahead
        self._final = final
        self._batches: deque[Sequence[Future[Any]]] = deque()

    def want(self, requests: int, sentences: int, *, waiting: bool, split: bool) -> bool:
        """Whether a Triton batch of so many requests with so many sentences in all goes this way.

        waiting: whether others wait here already. split: whether one of them is more than a batch of the engine.
        """
        if split:
            return True
        if self._ahead is None:
            # With nobody before or, the batch being small, behind it, a list holds up nobody and is the cheaper way.
            return requests > 0 and (waiting or sentences >= LARGE_SENTENCES)
        return self._ahead > 0 and requests > 0 and sentences >= LARGE_SENTENCES * requests

    def hand_over(
        self, requests: Sequence[Any], futures: "Sequence[Future[Any]]", responses: Sequence[MakeResponse]
    ) -> None:
        """Answer each request with what its `make` gives, once its future is done; waits while too much is ahead.

        Waiting here keeps the queue in Triton, where requests can be overtaken, time out and are counted.
        """
        for request, future, response in zip(requests, futures, responses, strict=True):
            future.add_done_callback(partial(self._send, request.get_response_sender(), response))
        self._batches.append(futures)
        if self._ahead is None:
            while self._batches and all(future.done() for future in self._batches[0]):
                self._batches.popleft()
            return
        while len(self._batches) > (self._ahead or AHEAD_WHERE_SPLIT):
            wait(self._batches.popleft())

    def finish(self) -> None:
        """Wait for what is here."""
        while self._batches:
            wait(self._batches.popleft())

    def _send(self, sender: Any, response: MakeResponse, _: "Future[Any]") -> None:
        sender.send(response(), flags=self._final)
