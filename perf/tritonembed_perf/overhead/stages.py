"""The stages of a request through client and server, and how they are found in what Triton tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENSEMBLE, TOKENIZER, EMBEDDER = "embedding", "tokenizer", "embedder"

STAGES = (
    "client encode",
    "wire",
    "tokenizer queue",
    "tokenizer",
    "embedder queue",
    "embedder",
    "between models",
    "reply",
    "client decode",
)
"""In the order in which a request meets them. `between models`: Triton's ensemble scheduler."""


@dataclass(frozen=True)
class ClientTimes:
    """Of one request, in nanoseconds on the monotonic clock, which is the clock of Triton's traces too."""

    encode: int
    sent: int
    received: int
    decode: int


@dataclass(frozen=True)
class ModelTimes:
    """Mean nanoseconds a request that one model's statistics grew by. total: from its arrival to its answer."""

    requests: int
    total: float
    queue: float
    compute: float


Traces = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Of each request id, of each model, the moments by their names, in nanoseconds."""


def from_statistics(client: Sequence[ClientTimes], models: Mapping[str, ModelTimes]) -> dict[str, float]:
    """Mean milliseconds of each stage. Statistics don't part the way there from the way back: `wire` is both."""
    latency = _mean([times.received - times.sent for times in client])
    ensemble, tokenizer, embedder = models[ENSEMBLE], models[TOKENIZER], models[EMBEDDER]
    inside = tokenizer.queue + tokenizer.compute + embedder.queue + embedder.compute
    return _milliseconds(
        {
            "client encode": _mean([times.encode for times in client]),
            "wire": latency - ensemble.total,
            "tokenizer queue": tokenizer.queue,
            "tokenizer": tokenizer.compute,
            "embedder queue": embedder.queue,
            "embedder": embedder.compute,
            "between models": ensemble.total - inside,
            "reply": 0.0,
            "client decode": _mean([times.decode for times in client]),
        }
    )


def from_traces(client: Mapping[str, ClientTimes], traces: Traces) -> dict[str, float]:
    """Mean milliseconds of each stage over the requests that were traced. wire: the way there; reply: the way back."""
    rows: list[dict[str, float]] = []
    for name, times in client.items():
        models = traces.get(name, {})
        if not {ENSEMBLE, TOKENIZER, EMBEDDER} <= models.keys():
            continue
        ensemble, tokenizer, embedder = models[ENSEMBLE], models[TOKENIZER], models[EMBEDDER]
        inside = {
            "tokenizer queue": tokenizer["COMPUTE_START"] - tokenizer["QUEUE_START"],
            "tokenizer": tokenizer["COMPUTE_END"] - tokenizer["COMPUTE_START"],
            "embedder queue": embedder["COMPUTE_START"] - embedder["QUEUE_START"],
            "embedder": embedder["COMPUTE_END"] - embedder["COMPUTE_START"],
        }
        whole = ensemble["REQUEST_END"] - ensemble["REQUEST_START"]
        rows.append(
            {
                "client encode": times.encode,
                "wire": ensemble["REQUEST_START"] - times.sent,
                **inside,
                "between models": whole - sum(inside.values()),
                "reply": times.received - ensemble["REQUEST_END"],
                "client decode": times.decode,
            }
        )
    if not rows:
        raise ValueError("no request has a trace of all three models")
    return _milliseconds({stage: _mean([row[stage] for row in rows]) for stage in STAGES})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _milliseconds(stages: Mapping[str, float]) -> dict[str, float]:
    # Means of different clocks and samples: a stage that takes next to nothing can come out below it.
    return {stage: max(0.0, nanoseconds) / 1e6 for stage, nanoseconds in stages.items()}
