"""The cost of the cache of vectors if no text is repeated, and its gain if some texts are.

    python -m tritonembed_perf.scripts.cache served MODEL [--loads 50x1@16,50x64@4] [--repeated 0.3] [-- serve options]
    python -m tritonembed_perf.scripts.cache engine [--tokens 50] [--dimensions 768]

`served`: two managers with one worker and one server each, with and without `--cache-bytes`, are measured in turn, so
that a busy machine slows both. `new`: no text is repeated. `repeated`: a share of the texts is drawn from a fixed
number of texts by Zipf's law (the k-th most frequent comes 1/k times as often as the first), the others are new. A
round that does not count fills the cache. CPU time is per request: of the manager's worker (the hop), and of all
processes without the client. Medians count.

`engine`: the CPU time of the engine alone per request of new texts, with an executor that computes nothing, with and
without a cache, in turn. The cache is full, so each new text replaces an older one.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer
from typer import Option

from tritonembed_engine.cache import VectorCache
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import EmbedError, ExecutionFailed
from tritonembed_engine.executors.base import Ready
from tritonembed_engine.request import Request
from tritonembed_engine.token_ids import TokenIds
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.tune.loadgen.load import METHOD, encode_request, open_channels
from tritonembed_manager.tune.loads import LoadShape, WordTexts
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.options import Loads, Model, run_script
from tritonembed_perf.scripts.hop_cpu import WORKER, cpu_seconds
from tritonembed_perf.server import RunningServer, running_manager

TIMEOUT_S = 120.0
WAYS = ("off", "on")


class RepeatedTexts:
    """Texts of an exact number of tokens. repeated: the share of them that are drawn from `distinct` known texts."""

    def __init__(self, model: str, distinct: int, repeated: float) -> None:
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.tokenizing.loading import load_tokenizer

        self._words = WordTexts(load_tokenizer(read_model_files(model)))
        self._chance = random.Random(20)
        self._distinct, self._repeated = distinct, repeated
        self._weights = [1 / rank for rank in range(1, distinct + 1)]
        self._known: dict[int, list[str]] = {}

    def requests(self, load: LoadShape, count: int, *, repeated: bool) -> list[bytes]:
        """Encoded requests of the load's shape."""
        new = self._words.of_lengths([load.tokens] * (count * load.sentences), self._chance)
        if repeated:
            if load.tokens not in self._known:
                self._known[load.tokens] = self._words.of_lengths([load.tokens] * self._distinct, self._chance)
            for place in range(len(new)):
                if self._chance.random() < self._repeated:
                    [new[place]] = self._chance.choices(self._known[load.tokens], self._weights)
        return [encode_request(new[first : first + load.sentences]) for first in range(0, len(new), load.sentences)]


@dataclass
class Measured:
    """One round, in microseconds per request: wall time, the worker's CPU time, and that of all processes."""

    wall: float
    worker: float
    all: float


def measure(server: RunningServer, load: LoadShape, requests: Sequence[bytes]) -> Measured:
    """Send all requests, `load.at_once` at a time."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    pids = [process.pid for process in family]
    workers = [process.pid for process in family if WORKER in process.cmdline()]
    before = [sum(map(cpu_seconds, group)) for group in (workers, pids)]
    began = time.perf_counter()
    asyncio.run(_send(server.target, requests, load.at_once))
    wall = time.perf_counter() - began
    used = [sum(map(cpu_seconds, group)) - sum_ for group, sum_ in zip((workers, pids), before, strict=True)]
    return Measured(*(seconds / len(requests) * 1e6 for seconds in (wall, *used)))


async def _send(target: str, requests: Sequence[bytes], at_once: int) -> None:
    [channel] = open_channels(target, 1, ClientTls())
    infer = channel.unary_unary(METHOD, None, None)
    left = iter(requests)

    async def client() -> None:
        for request in left:
            await infer(request, timeout=TIMEOUT_S)

    async with channel:
        await asyncio.gather(*(client() for _ in range(at_once)))


def served(
    model: Model,
    context: typer.Context,
    loads: Loads = "50x1@16,50x64@4",
    sentences: Annotated[int, Option(min=1, help="Sentences per round.")] = 2048,
    rounds: Annotated[int, Option(min=1, help="Rounds; medians count.")] = 9,
    cache_bytes: Annotated[int, Option(min=1, help="Size of the cache.")] = 64 << 20,
    repeated: Annotated[float, Option(min=0, max=1, help="Share of the texts that come again.")] = 0.3,
    distinct: Annotated[int, Option(min=1, help="Number of different texts that come again.")] = 1000,
) -> dict[str, Any]:
    """Cost and gain of the cache through a manager, by load."""
    rows = []
    texts = RepeatedTexts(model, distinct, repeated)
    common = ["--workers", "1", "--load-balancing", "least_loaded", *context.args]
    with ExitStack() as stack:
        servers = {
            "off": stack.enter_context(running_manager(model, common)),
            "on": stack.enter_context(running_manager(model, [*common, "--cache-bytes", str(cache_bytes)])),
        }
        for load in parse_loads(loads):
            count = max(sentences // load.sentences, 1)
            for kind in ("new", "repeated"):
                found: dict[str, list[Measured]] = {way: [] for way in WAYS}
                for number in range(rounds + 1):
                    requests = texts.requests(load, count, repeated=kind == "repeated")
                    for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                        measured = measure(servers[way], load, requests)
                        # The first round fills the cache.
                        if number:
                            found[way].append(measured)
                rows.append({"load": str(load), "texts": kind, **_compared(found)})
                _show(rows[-1])
    return {"cache_bytes": cache_bytes, "repeated": repeated, "distinct": distinct, "rows": rows}


class _Nothing:
    """An executor that computes nothing: its vectors are always the same."""

    name, dtype = "nothing", "float32"
    depth = 1
    refused_id: int | None = None
    token_dimensions: int | None = None
    pools_spans, on_any_thread = False, True
    max_batch_tokens, max_batch_sentences = 32_768, 1024

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self._vectors = np.full((self.max_batch_sentences, dimensions), dimensions**-0.5, np.float32)

    def launch(self, sentences: TokenIds, *_: object) -> Ready:
        """See Executor."""
        return Ready(self._vectors[: len(sentences)].copy())

    def explain(self, error: Exception) -> EmbedError:
        """See Executor."""
        return ExecutionFailed(type(error).__name__)

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to free."""


def engine(
    tokens: Annotated[int, Option(min=1, help="Tokens per text.")] = 50,
    dimensions: Annotated[int, Option(min=1)] = 768,
    rounds: Annotated[int, Option(min=1, help="Rounds; medians count.")] = 15,
    sentences: Annotated[int, Option(min=64, help="Sentences per round.")] = 4096,
) -> dict[str, Any]:
    """CPU time of the engine per request, by sentences in a request."""
    rng, rows = np.random.default_rng(0), []
    for size in (1, 16, 64):
        # Each round replaces all of it.
        caches = {"off": None, "on": VectorCache(sentences * (4 * (tokens + dimensions) + 300) // 2)}
        engines = {way: EmbeddingEngine(_Nothing(dimensions), cache=caches[way]) for way in WAYS}
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                texts = [rng.integers(0, 30_000, tokens, np.int32).tobytes() for _ in range(sentences // size * size)]
                requests = [texts[first : first + size] for first in range(0, len(texts), size)]
                taken = _engine_seconds(engines[way], requests, keyed=way == "on") / len(requests) * 1e6
                if number:
                    found[way].append(taken)
        for one in engines.values():
            one.close()
        off, on = (median(found[way]) for way in WAYS)
        rows.append({"sentences": size, "off": off, "on": on, "per_sentence": (on - off) / size})
        print(
            f"{size} x {tokens} tokens, {dimensions} dimensions: {off:.1f} µs of CPU per request without, {on:.1f} "
            f"with a cache: {(on - off) / size:.2f} µs more per sentence"
        )
    return {"tokens": tokens, "dimensions": dimensions, "rounds": rounds, "rows": rows}


def _engine_seconds(engine: EmbeddingEngine, requests: Sequence[Sequence[bytes]], *, keyed: bool) -> float:
    """CPU time of this thread, which does all of the work."""
    began = time.thread_time()
    for texts in requests:
        keys = [("", 0, text, None) for text in texts] if keyed else None
        [future] = engine.submit_all([Request(TokenIds.join(texts), normalize=True, keys=keys)], wait=True)
        future.result()
    return time.thread_time() - began


def _compared(found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians in microseconds per request, and the medians of the rounds' ratios, with the cache to without."""
    figures: dict[str, Any] = {}
    for name in ("wall", "worker", "all"):
        by_way = {way: [getattr(measured, name) for measured in found[way]] for way in WAYS}
        figures[name] = {way: median(by_way[way]) for way in WAYS}
        figures[name]["ratio"] = median(on / off for on, off in zip(by_way["on"], by_way["off"], strict=True))
    return figures


def _show(row: dict[str, Any]) -> None:
    names = {"wall": "time", "worker": "CPU of the worker", "all": "CPU of all"}
    parts = [
        f"{label} {row[name]['on']:,.0f} µs with, {row[name]['off']:,.0f} without ({row[name]['ratio']:.3f})"
        for name, label in names.items()
    ]
    print(f"{row['load']}, {row['texts']} texts, per request: {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    run_script("cache", __doc__, served, engine)
