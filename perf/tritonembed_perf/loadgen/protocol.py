"""What the three protocols have in common: requests are bytes made beforehand, answers bytes until they are checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tritonembed_manager.tune.loadgen.load import Outcome, Sender, Work
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.answers import Answer, AnswerCheck
from tritonembed_perf.loadgen.requests import PooledRequest
from tritonembed_perf.reports import without_paths

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Served:
    """A server's own description. model: the name that requests use."""

    model: str
    description: str
    max_batch_size: int | None = None


class WrongAnswerError(Exception):
    """An answer that can't be read as vectors."""


class WireProtocol(Protocol):
    """One way to get vectors from a server; small enough to be pickled to the client processes."""

    @property
    def name(self) -> str:
        """As --protocol names it."""

    @property
    def server(self) -> str:
        """The address."""

    @property
    def model(self) -> str | None:
        """The name at the server; None: what it has."""

    def sender(self) -> Sender:
        """How payloads reach the server."""

    def encode(self, texts: Sequence[str]) -> bytes:
        """A request's payload."""

    def decode(self, answer: bytes, sentences: int) -> Answer:
        """Raises WrongAnswerError; RequestFailedError for an error that travels as a success."""

    async def describe(self, timeout: float) -> Served:
        """What the server has. Raises UsageError if it does not answer or lacks the model."""


def unreachable(protocol: WireProtocol, reason: str = "") -> UsageError:
    """The error for a server that does not answer."""
    return UsageError(f"no server answers at {protocol.server} over {protocol.name}" + (reason and f" ({reason})"))


def choose_model(protocol: WireProtocol, models: Sequence[str]) -> str:
    """The protocol's model, else the first of the server's. Raises UsageError if the server lacks it."""
    model = protocol.model or next(iter(models), "")
    if model not in models:
        has = ", ".join(models) or "none that takes texts"
        raise UsageError(f"the server has no model {protocol.model!r}; it has: {has}")
    return model


def make_work(protocol: WireProtocol, requests: Sequence[PooledRequest], check: AnswerCheck) -> Work:
    """Requests for the load generator, with every answer checked."""
    return Work(
        protocol.sender(),
        tuple(protocol.encode(request.texts) for request in requests),
        tuple(request.tokens for request in requests),
        partial(_fault, protocol.decode, len(requests[0].texts), check),
        frozenset(check.references),
    )


def figures(outcome: Outcome) -> dict[str, Any]:
    """What is reported of any load: rates, latencies, and of failures and wrong answers how many, and why."""
    part = outcome.part
    faults = [*part.faults, *(f"{kind}: {message}" for kind, message in part.messages.items())]
    return {
        "requests_per_second": outcome.requests_per_second,
        "tokens_per_second": outcome.tokens_per_second,
        **{f"{name}_ms": outcome.latency_ms(of) if outcome.requests else 0.0 for name, of in PERCENTILES.items()},
        "errors": part.errors,
        "wrong": part.wrong,
        "faults": [without_paths(fault) for fault in dict.fromkeys(faults)],
        "client_cpu_seconds": outcome.client_cpu_seconds,
        "client_saturated": outcome.is_client_saturated,
    }


def _fault(decode: Callable[[bytes, int], Answer], sentences: int, check: AnswerCheck, number: int, raw: bytes) -> str:
    try:
        answer = decode(raw, sentences)
    except WrongAnswerError as error:
        return str(error)
    return check.find_fault(number, answer)
