"""An attack: a hostile request, and the outcomes that are allowed for it."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import grpc.aio

CANARY = "quxolotl7731"
"""A word in the texts, headers and queries of attacks. A log or an error that holds it leaks a request's content."""

FROM = ("127.0.0.2", 0)
"""Source address of attacks over HTTP and bare sockets, apart from the good callers': the manager limits each peer."""

REFUSED = frozenset({"INVALID_ARGUMENT", "stream error", "400"})
"""The answer says that the request is bad."""
NAMED_WRONG = REFUSED | {"NOT_FOUND", "UNIMPLEMENTED", "404", "405", "501"}
TOO_MUCH = frozenset({"RESOURCE_EXHAUSTED", "413", "429"})
LATE = frozenset({"DEADLINE_EXCEEDED", "504"})
ANSWERED = frozenset({"OK", "200"})
HUNG_UP = frozenset({"closed", "408", "silent"})
"""The service closed the connection, or the attacker did, after the silence that it had planned."""
ANYTHING_BUT_A_FAULT = ANSWERED | NAMED_WRONG | TOO_MUCH | LATE | HUNG_UP


@dataclass(frozen=True)
class AttackTarget:
    """Where the service listens, and one attacker's connections to it."""

    host: str
    grpc_port: int
    http_port: int
    channel: grpc.aio.Channel
    session: aiohttp.ClientSession
    model: str
    """The model's name in OpenAI's API."""

    @property
    def url(self) -> str:
        """Base URL for HTTP."""
        return f"http://{self.host}:{self.http_port}"


Send = Callable[[AttackTarget, random.Random], Awaitable[tuple[str, str]]]
"""Returns the outcome (name of a gRPC code, HTTP status, `closed`, `silent`, …) and the error's message, or ""."""


@dataclass(frozen=True)
class Attack:
    """A kind of attack. allowed: outcomes. often: weight in the random choice. limit_s: for an answer, in seconds."""

    name: str
    send: Send
    allowed: frozenset[str]
    often: float = 1.0
    limit_s: float = 20.0
