"""A request to several servers, at moments that a real server can't be made to hit."""

from concurrent.futures import Future
from unittest.mock import Mock

import grpc

from tritonembed._routing import Router
from tritonembed._transport import RoutedCall
from tritonembed.request import Deadline, PreparedRequest


class Answer(Future):
    """The part of gRPC's future that is used."""

    def __init__(self, code=None):
        super().__init__()
        self._code = code
        if code is not None:
            self.set_result("the answer")

    def code(self):
        return grpc.StatusCode.CANCELLED if self.cancelled() else self._code

    def details(self):
        return "Socket closed"


def routed(*sends):
    """A request to one server per function. Each function returns the future of a request to its server."""
    router = Router([str(number) for number in range(len(sends))], "round_robin")
    left = list(sends)
    infer = [Mock(future=lambda *_, **__: left.pop(0)()) for _ in sends]
    return router, RoutedCall(router, infer, PreparedRequest(Mock(), 1, 7, None, Deadline(None)), ())


def broken():
    return Answer(grpc.StatusCode.UNAVAILABLE)


def test_a_request_that_fails_at_once_is_retried_at_once():
    router, call = routed(broken, lambda: Answer(grpc.StatusCode.OK))
    call.start()
    done = []
    call.add_done_callback(done.append)
    assert done == [call]
    assert (call.code(), call.result()) == (grpc.StatusCode.OK, "the answer")
    assert [server.load for server in router.upstreams] == [0, 0]


def test_a_cancel_during_a_retry_reaches_the_second_server():
    second = Answer()

    def cancelled_meanwhile():
        call.cancel()
        return second

    router, call = routed(broken, cancelled_meanwhile)
    call.start()
    assert second.cancelled()
    assert call.done()
    assert [server.load for server in router.upstreams] == [0, 0]


def test_a_channel_that_closes_before_a_retry_leaves_the_first_failure():
    def closed():
        raise ValueError("Cannot invoke RPC on closed channel!")

    router, call = routed(broken, closed)
    call.start()
    assert call.done()
    assert (call.code(), call.details()) == (grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert [server.load for server in router.upstreams] == [0, 0]
