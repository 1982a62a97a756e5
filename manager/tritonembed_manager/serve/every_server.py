"""One call to every server, and what counts as its answer."""

import asyncio

import grpc

from tritonembed_manager.serve.model import Dispatcher, DispatchError

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def call_all(
    dispatcher: Dispatcher, method: str, message: bytes, *, timeout: float | None, or_unavailable: bool = False
) -> list[bytes]:
    """The answers of all servers that requests go to, at least one. Raises the first DispatchError.

    or_unavailable: some may be unavailable, but not all.
    """
    calls = [dispatcher.call(method, message, timeout=timeout, server=server) for server in dispatcher.serving()] or [
        dispatcher.call(method, message, timeout=timeout)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    good = [answer for answer in answers if isinstance(answer, bytes)]
    for answer in answers:
        if good and or_unavailable and isinstance(answer, DispatchError) and answer.code is _UNAVAILABLE:
            continue
        if isinstance(answer, BaseException):
            raise answer
    return good
