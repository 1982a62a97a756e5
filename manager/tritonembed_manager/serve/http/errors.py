"""Errors as HTTP answers: OpenAI's JSON form under /v1, KServe's everywhere else."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from aiohttp import web

from tritonembed import ServerError
from tritonembed_manager.serve.model import DispatchError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CODE = grpc.StatusCode
STATUS = {
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.FAILED_PRECONDITION: 400,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.UNAUTHENTICATED: 401,
    _CODE.PERMISSION_DENIED: 403,
    _CODE.NOT_FOUND: 404,
    _CODE.ALREADY_EXISTS: 409,
    _CODE.ABORTED: 409,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.CANCELLED: 499,
    _CODE.UNIMPLEMENTED: 501,
    _CODE.UNAVAILABLE: 503,
    _CODE.DEADLINE_EXCEEDED: 504,
}
"""HTTP's status for gRPC's; 500 for all others. As Triton's own, but for what it gives no status of its own."""
_SERVER_ERROR = 500
_log = logging.getLogger(__name__)


class BadRequest(Exception):
    """A request that cannot be answered, in one line for its sender.

    parameter: the field that is wrong. status and code: HTTP's, and OpenAI's short word where it has one.
    """

    def __init__(self, message: str, parameter: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.status = status
        self.code = code


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong becomes an answer of its client's kind; what nobody expected is logged, without its words."""
    try:
        return await handler(request)
    except BadRequest as error:
        return _answer(request, error)
    except DispatchError as error:
        return _dispatch_error(request, error)
    except UnicodeEncodeError:
        message = "a string of the request has a lone surrogate, which has no UTF-8 form"
        return _answer(request, BadRequest(message))
    except ServerError as error:
        _log.error("a server's answer cannot be passed on: %s", error.message)
        return _answer(request, BadRequest(error.message, status=_SERVER_ERROR))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return _answer(
            request, BadRequest(f"{request.method} of this path: {error.reason}", status=error.status), allow
        )
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception as error:
        # Its message and the lines of its traceback may hold a request's text.
        _log.error("%s in %s: this is a bug", type(error).__name__, _place(error))
        return _answer(request, BadRequest("internal error of the manager", status=_SERVER_ERROR))


def _dispatch_error(request: web.Request, error: DispatchError) -> web.Response:
    headers = {}
    if error.retry_after is not None:
        # HTTP has whole seconds; OpenAI's clients know the other one.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        headers["Retry-After-Ms"] = str(round(error.retry_after * 1000))
    status = STATUS.get(error.code, _SERVER_ERROR)
    code = "rate_limit_exceeded" if error.code is _CODE.RESOURCE_EXHAUSTED else None
    return _answer(request, BadRequest(error.message, status=status, code=code), headers)


def _answer(request: web.Request, error: BadRequest, headers: dict[str, str] | None = None) -> web.Response:
    form = _openai_form(error) if request.path.startswith("/v1/") else error.message
    return web.json_response({"error": form}, status=error.status, headers=headers)


def _openai_form(error: BadRequest) -> dict[str, Any]:
    kind = "server_error" if error.status >= _SERVER_ERROR else "invalid_request_error"
    if error.code == "rate_limit_exceeded":
        kind = "rate_limit_error"
    return {"message": error.message, "type": kind, "param": error.parameter, "code": error.code}


def _place(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "?"
    return f"{traceback.tb_frame.f_globals.get('__name__', '?')}, line {traceback.tb_lineno}"
