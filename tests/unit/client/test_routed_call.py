"""A request on its way to several servers, at the moments that no real server can be made to hit."""

from concurrent.futures import Future
from unittest.mock import Mock

import grpc

from tritonembed._deadline import Deadline
from tritonembed._request import Request
from tritonembed._routed_call import RoutedCall
from tritonembed._router import Router


class Answer(Future):
    """gRPC's future, as far as it is used."""

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
    """A request to as many servers as there are functions that give the future of a request sent there."""
    router = Router([str(number) for number in range(len(sends))], "round_robin")
    left = list(sends)
    infer = [Mock(future=lambda *_, **__: left.pop(0)()) for _ in sends]
    return router, RoutedCall(router, infer, Request(Mock(), 1, 7, None, Deadline(None)), ())


def broken():
    return Answer(grpc.StatusCode.UNAVAILABLE)


def test_a_failure_that_is_known_at_once_is_sent_again_at_once():
    router, call = routed(broken, lambda: Answer(grpc.StatusCode.OK))
    call.start()
    done = []
    call.add_done_callback(done.append)
    assert done == [call]
    assert (call.code(), call.result()) == (grpc.StatusCode.OK, "the answer")
    assert [server.load for server in router.servers] == [0, 0]


def test_a_cancel_while_it_is_sent_again_reaches_the_second_server():
    second = Answer()

    def cancelled_meanwhile():
        call.cancel()
        return second

    router, call = routed(broken, cancelled_meanwhile)
    call.start()
    assert second.cancelled()
    assert call.done()
    assert [server.load for server in router.servers] == [0, 0]


def test_a_channel_that_is_closed_before_it_is_sent_again_leaves_the_first_failure():
    def closed():
        raise ValueError("Cannot invoke RPC on closed channel!")

    router, call = routed(broken, closed)
    call.start()
    assert call.done()
    assert (call.code(), call.details()) == (grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert [server.load for server in router.servers] == [0, 0]
