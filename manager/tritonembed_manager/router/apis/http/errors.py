"""Errors as HTTP answers, each in the form of the API that was called.

The error for an unknown path has OpenAI's form under /v1 and KServe's elsewhere.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from aiohttp import web

from tritonembed import InvalidArgumentError, ServerError
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_manager.router.log import place
from tritonembed_protocol.status import code_of_refusal, status_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CODE = grpc.StatusCode
_VECTORS = ("/infer", "/embeddings", "/embed", "/embed_sparse", "/embed_all", "/similarity")
_SCORES = ("/rerank", "/predict", "/score")
"""Endings of the paths that answer with vectors."""
_TOKENS = ("/tokenize", "/decode")
_SERVER_ERROR = 500
_ASK_A_BROWSER = 'Basic realm="tritonembed: any name, and a key as the password", charset="UTF-8"'
_OPENAI_CODES = {_CODE.RESOURCE_EXHAUSTED: "rate_limit_exceeded", _CODE.UNAUTHENTICATED: "invalid_api_key"}
LONE_SURROGATE = "a string of the request has a lone surrogate, which has no UTF-8 form"
_log = logging.getLogger(__name__)


class BadRequest(Exception):
    """A request that cannot be answered. The message is one line for its sender.

    parameter: the field that is wrong. status: HTTP's. code: OpenAI's short word, if it has one.
    """

    is_counted = False
    """Whether a dispatcher has received and counted the request."""

    def __init__(self, message: str, parameter: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.status = status
        self.code = code


Form = Callable[[BadRequest], tuple[int, dict[str, Any]]]
"""The status and the body of an error."""
FORMS = web.AppKey("forms", dict[str, Form])
"""The form of errors by method and route, such as `POST /v1/embeddings`."""


class PageNeedsKey(DispatchError):
    """A page lacks a key, for which the browser is to ask its user."""


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into an answer in its client's form. Unexpected errors are logged without their message."""
    try:
        return await handler(request)
    except BadRequest as error:
        return _answer(request, error)
    except DispatchError as error:
        return _dispatch_error(request, error)
    except UnicodeEncodeError:
        return _answer(request, BadRequest(LONE_SURROGATE))
    except InvalidArgumentError as error:
        # The answer shows that the model gives no dense vectors.
        return _answer(request, BadRequest(error.message))
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
        _log.error("%s in %s: this is a bug", type(error).__name__, place(error.__traceback__))
        return _answer(request, BadRequest("internal error of the manager", status=_SERVER_ERROR))


def counting(refused: Callable[[grpc.StatusCode], None]) -> Any:
    """A middleware inside answer_errors: counts requests for vectors that are refused before a dispatcher has them."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as error:
            if not error.is_counted and is_for_vectors(request):
                refused(grpc.StatusCode[code_of_refusal(error.status)])
            raise

    return count


def is_for_vectors(request: web.Request) -> bool:
    """Whether the request's route answers with vectors or scores."""
    path = request.path.rstrip("/")
    # `POST /` is TEI's, and so is `POST /models/NAME`.
    is_root = not path or (path.startswith("/models/") and not path.endswith(_TOKENS))
    return request.method == "POST" and (is_root or path.endswith(_VECTORS + _SCORES))


def _dispatch_error(request: web.Request, error: DispatchError) -> web.Response:
    headers = {}
    if error.retry_after is not None:
        # Retry-After has whole seconds; OpenAI's clients also read Retry-After-Ms.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        headers["Retry-After-Ms"] = str(round(error.retry_after * 1000))
    if error.code is _CODE.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = _ASK_A_BROWSER if isinstance(error, PageNeedsKey) else "Bearer"
    status, code = status_of(error.code.name).http, _OPENAI_CODES.get(error.code)
    return _answer(request, BadRequest(error.message, status=status, code=code), headers)


def _answer(request: web.Request, error: BadRequest, headers: dict[str, str] | None = None) -> web.Response:
    status, body = _form_of(request)(error)
    return web.json_response(body, status=status, headers=headers)


def _form_of(request: web.Request) -> Form:
    route = request.match_info.route.resource
    path = request.path if route is None else route.canonical
    return form_of_route(request.app, request.method, path)


def form_of_route(app: web.Application, method: str, path: str) -> Form:
    """The form of errors of a route. path: with the names of its variable parts."""
    by_prefix = openai_form if path.startswith("/v1/") else kserve_form
    return app.get(FORMS, {}).get(f"{method} {path}", by_prefix)


def kserve_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in KServe's form."""
    return error.status, {"error": error.message}


def openai_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in OpenAI's form."""
    kind = "server_error" if error.status >= _SERVER_ERROR else "invalid_request_error"
    if error.code == "rate_limit_exceeded":
        kind = "rate_limit_error"
    form = {"message": error.message, "type": kind, "param": error.parameter, "code": error.code}
    return error.status, {"error": form}
