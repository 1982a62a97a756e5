"""The stages of a request through client and server, and how they are found in what Triton and the engine tell."""

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
"""In the order in which a request meets them. `between models`: Triton's ensemble scheduler, and where response senders
answer the way into the embedder's process and out of it."""


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


@dataclass(frozen=True)
class EngineTimes:
    """Mean nanoseconds that the embedder's engine had a request: until it was launched, from then to its vectors."""

    queue: float
    compute: float


Traces = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Of each request id, of each model, the moments by their names, in nanoseconds."""


def from_statistics(
    client: Sequence[ClientTimes], models: Mapping[str, ModelTimes], engine: EngineTimes
) -> dict[str, float]:
    """Mean milliseconds of each stage. Statistics don't part the way there from the way back: `wire` is both."""
    latency = _mean([times.received - times.sent for times in client])
    tokenizer, embedder = models[TOKENIZER], models[EMBEDDER]
    # Triton's clock for a request runs on while it lets go of it, when the answer may be there already.
    whole = min(models[ENSEMBLE].total, latency)
    in_triton = (tokenizer.queue, tokenizer.compute, embedder.queue, embedder.compute)
    return _milliseconds(
        {
            "client encode": _mean([times.encode for times in client]),
            "wire": latency - whole,
            **_inside(whole, in_triton, engine),
            "reply": 0.0,
            "client decode": _mean([times.decode for times in client]),
        }
    )


def from_traces(client: Mapping[str, ClientTimes], traces: Traces, engine: EngineTimes) -> dict[str, float]:
    """Mean milliseconds of each stage over the requests that were traced. wire: the way there; reply: the way back."""
    rows: list[tuple[int, ...]] = []
    for name, times in client.items():
        models = traces.get(name, {})
        if not {ENSEMBLE, TOKENIZER, EMBEDDER} <= models.keys():
            continue
        ensemble, tokenizer, embedder = models[ENSEMBLE], models[TOKENIZER], models[EMBEDDER]
        arrived = ensemble["REQUEST_START"]
        # A model's and the ensemble's last moments may come after what they gave has gone on.
        ended = min(ensemble["REQUEST_END"], ensemble.get("INFER_RESPONSE_COMPLETE", ensemble["REQUEST_END"]))
        tokenized = min(tokenizer["COMPUTE_END"], embedder["QUEUE_START"])
        rows.append(
            (
                times.encode,
                arrived - times.sent,
                ended - arrived,
                tokenizer["COMPUTE_START"] - tokenizer["QUEUE_START"],
                tokenized - tokenizer["COMPUTE_START"],
                embedder["COMPUTE_START"] - embedder["QUEUE_START"],
                min(embedder["COMPUTE_END"], ended) - embedder["COMPUTE_START"],
                times.received - ended,
                times.decode,
            )
        )
    if not rows:
        raise ValueError("no request has a trace of all three models")
    encode, wire, whole, *in_triton, reply, decode = map(_mean, zip(*rows, strict=True))
    inside = _inside(whole, in_triton, engine)
    return _milliseconds({"client encode": encode, "wire": wire, **inside, "reply": reply, "client decode": decode})


def _inside(whole: float, in_triton: Sequence[float], engine: EngineTimes) -> dict[str, float]:
    """What the time in the ensemble goes to. in_triton: queue and computation of the tokenizer, then of the embedder.

    Where answers are a list, Triton's computation of the embedder is what the engine and the python around it take;
    with response senders it is the hand-over alone, and the engine knows how long the rest took.
    """
    tokenizer_queue, tokenizer, embedder_queue, embedder = in_triton
    parts = {
        "tokenizer queue": tokenizer_queue,
        "tokenizer": tokenizer,
        "embedder queue": embedder_queue + engine.queue,
        "embedder": max(embedder - engine.queue, engine.compute),
    }
    # Means of different clocks, which may count the same moment twice: the parts are never more than the whole.
    fit = min(1.0, whole / max(sum(parts.values()), 1.0))
    parts = {stage: part * fit for stage, part in parts.items()}
    return {**parts, "between models": whole - sum(parts.values())}


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def _milliseconds(stages: Mapping[str, float]) -> dict[str, float]:
    # Differences of floats: a stage that takes nothing can come out a hair below it.
    return {stage: max(0.0, nanoseconds) / 1e6 for stage, nanoseconds in stages.items()}
