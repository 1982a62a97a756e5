"""The ensemble through a real Triton server against sentence-transformers in this process: `make bench`, `bench-quick`.

    python -m tritonembed_perf.scripts.bench full [--rounds 5] [--json FILE] [-- replica options]
    python -m tritonembed_perf.scripts.bench quick [--update] [--limit SECONDS] [--forward-only]

On BERT of 6 layers x 384 with random weights, in turn, on the same requests. `full` also measures the tokenizer stage
against `tokenizers` called directly, and memory over 10,000 requests. `quick` also measures the openvino executor's
forward in every precision of the processor, on one thread, in CPU seconds (`per_core`): other work on the machine
changes these ratios little. It compares all of its ratios with those committed for this kind of machine: exit code 1 if
one is more than 20 % lower.

A ratio of two programs depends on the processor: its matrix instructions, its caches, the number of cores. A figure of
another kind of machine says nothing about a change of the code.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from tokenizers import Tokenizer
from typer import Option

from tritonembed_engine.engine import REST_AFTER_S
from tritonembed_engine.executors.loading import reason_against_bfloat16, reason_against_int8
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import DEFAULTS
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.load import GrpcSender, Load, Work, encode_request
from tritonembed_manager.tune.loads import LoadShape, exact_length_texts
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.checks import AnswerCheck, make_references, make_work, min_cosine
from tritonembed_perf.loadgen.protocols import KServeProtocol
from tritonembed_perf.loadgen.requests import PooledRequest, make_requests
from tritonembed_perf.models import cached_preset
from tritonembed_perf.options import run_script
from tritonembed_perf.reports import describe_environment
from tritonembed_perf.scripts.per_core import PEER, compare
from tritonembed_perf.server import RunningServer, running_server, server_memory_mib

MODEL = "bert-6x384"
LOADS = FULL_LOAD, _ = LoadShape(50, 64, 4), LoadShape(50, 1, 16)
FULL_SECONDS, QUICK_SECONDS = 6.0, 2.0
QUICK_SERVER = ("--device", "cpu", "--dtype", "float32", "--no-reference")
"""Options of `quick`'s server. It needs no reference: its answers are compared with the peer's vectors."""

MOST_ROUNDS, FEWEST_ROUNDS = 5, 2
"""Rounds of `quick`. A single round can't show whether it was disturbed, so there are two even if time is up."""

FORWARD = "64x50"
"""Sentences and tokens, as `per_core` has them."""

FORWARD_ROUNDS = 5
ANY_QUALITY = 0.01
"""int8's gate: random weights keep fewer of the ten nearest than a model, and these figures are of speed alone."""

WARM_UP_S = 0.5
TEXTS = 512
TOKENIZED_BATCHES, TOKENIZED_REPEAT = 8, 5
EARLY, LATE = 1_000, 10_000
"""The numbers of requests after which memory is read."""


def full(
    context: typer.Context,
    rounds: Annotated[int, Option(min=1, help="Of server and peer in turn; medians count.")] = 5,
    dtype: Annotated[str, Option(help="Precision of the server.")] = "float32",
    peer_dtype: Annotated[str, Option(help="Precision of sentence-transformers.")] = "float32",
) -> dict[str, Any]:
    """Against sentence-transformers, and the tokenizer, and memory."""
    folder = str(cached_preset(MODEL))
    report: dict[str, Any] = {"tokenizer": compare_tokenizer(folder)}
    with running_server(folder, ["--dtype", dtype, *context.args]) as server:
        peer = Peer.load(folder, peer_dtype)
        turns = range(rounds)
        report["throughput"] = measure_both(server.target, peer, FULL_LOAD, turns, np.median, FULL_SECONDS, dtype)
        report["memory"] = compare_memory(server, peer.tokenizer)
    return report


def quick(
    context: typer.Context,
    update: Annotated[bool, Option("--update", help="Write the ratios as this machine's baseline.")] = False,
    limit: Annotated[float, Option(help="Seconds; fewer rounds if they are short.")] = 150.0,
    forward_only: Annotated[
        bool, Option("--forward-only", help="Leave out the server, whose ratios mean nothing on a busy machine.")
    ] = False,
) -> dict[str, Any]:
    """Against sentence-transformers; fails if the ratios have dropped."""
    began = time.monotonic()
    folder = str(cached_preset(MODEL))
    rows = [] if forward_only else server_rows(folder, context.args, began, limit)
    rows += per_core_rows(folder)
    print(f"{time.monotonic() - began:.0f} s")
    environment = describe_environment(["python", "-m", "tritonembed_perf.scripts.bench", "quick"])
    conclude(environment, rows, update, BASELINES)
    return {"rows": rows}


def server_rows(folder: str, options: Sequence[str], began: float, limit: float) -> list[dict[str, Any]]:
    """A row for each load. options: more of the server's. began: on the monotonic clock; limit: in seconds."""
    rows = []
    with ThreadPoolExecutor(1) as pool:
        # The peer is loaded while the server starts.
        loading = pool.submit(Peer.load, folder, "float32")
        with running_server(folder, [*QUICK_SERVER, *options]) as server:
            peer = loading.result()
            for number, load in enumerate(LOADS):
                now = time.monotonic()
                until = now + (began + limit - now) / (len(LOADS) - number)
                # Other work on the machine makes rounds slower, never faster: the best round was disturbed least.
                rows.append(measure_both(server.target, peer, load, rounds_until(until), max, QUICK_SECONDS, "float32"))
    return rows


def per_core_rows(folder: str) -> list[dict[str, Any]]:
    """A row for each precision in which the openvino executor can compute here: both sides in one CPU second."""
    settings = {
        precision: ModelSettings.model_validate({"model": folder, "vllm": {argument: precision}})
        for precision, argument in (("float32", "dtype"), ("bfloat16", "dtype"), ("int8", "quantization"))
    }
    files = read_model_files(folder)
    systems = {
        precision: "openvino" if precision == "float32" else f"openvino-{precision}"
        for precision, one in settings.items()
        if not (reason_against_bfloat16(one) or reason_against_int8(one, files, "cpu"))
    }
    found = compare(folder, [FORWARD], FORWARD_ROUNDS, [PEER, *systems.values()], ANY_QUALITY)
    rates = {row["system"]: row for row in found}
    return [
        {
            "load": f"{FORWARD}, forward, {precision}",
            "ours": rates[system]["rates"],
            "sentence_transformers": rates[PEER]["rates"],
            "ratio": rates[system]["per_cpu_second"] / rates[PEER]["per_cpu_second"],
        }
        for precision, system in systems.items()
    ]


@dataclass(frozen=True)
class Peer:
    """sentence-transformers on this CPU. dtype: of its weights."""

    model: Any
    dtype: str
    files: ModelFiles
    tokenizer: Tokenizer

    @staticmethod
    def load(folder: str, dtype: str) -> "Peer":
        """Load the model, which takes seconds."""
        import torch
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        return Peer(model, dtype, read_model_files(folder), Tokenizer.from_file(f"{folder}/tokenizer.json"))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One call of `encode`, as one batch."""
        found: npt.NDArray[np.float32] = self.model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return found

    def speed(self, requests: Sequence[PooledRequest], count: int) -> float:
        """Sentences per second of `count` requests, one after the other."""
        start = time.perf_counter()
        for number in range(count):
            self.embed(requests[number % len(requests)].texts)
        return count * len(requests[0].texts) / (time.perf_counter() - start)


def measure_both(
    server: str,
    peer: Peer,
    load: LoadShape,
    turns: Iterable[int],
    typical: Callable[[list[float]], Any],
    seconds: float,
    dtype: str,
) -> dict[str, Any]:
    """Sentences per second of each round of both sides, and the ratio of their typical rounds.

    server: host:port. turns: one round each. typical: chooses the figure that stands for all rounds. seconds: the
    approximate time of the peer in a round; it encodes the same requests one after the other. dtype: the server's.
    """
    texts = exact_length_texts(peer.tokenizer, load.tokens, TEXTS, seed=1)
    requests = make_requests(texts, [load.tokens] * TEXTS, load.sentences)
    least = min(min_cosine(dtype), min_cosine(peer.dtype))
    tokens = tuple(request.tokens for request in requests)
    references = make_references(requests, peer.embed)
    check = AnswerCheck(peer.files.dimensions, peer.files.normalize, least, references, tokens)
    work = make_work(KServeProtocol(server), requests, check)
    # The same work in all rounds, not the same time: a window of time would cut through batches.
    speed = peer.speed(requests, -(-load.at_once // 4))
    count = load.at_once * max(2, round(seconds * speed / load.sentences / load.at_once))
    rounds: dict[str, list[float]] = {"ours": [], "sentence_transformers": []}
    for _ in turns:
        rounds["ours"].append(send(work, load.at_once, count, WARM_UP_S) * load.sentences)
        rounds["sentence_transformers"].append(peer.speed(requests, count))
    us, them = (float(typical(speeds)) for speeds in rounds.values())
    print(
        f"{load}, {dtype}: {us:,.0f} sentences/s ({us * load.tokens:,.0f} tokens/s) through Triton; "
        f"sentence-transformers in process, {peer.dtype}: {them:,.0f}: {us / them:.2f} x "
        f"({'best' if typical is max else 'median'} of {len(rounds['ours'])} rounds)",
        flush=True,
    )
    about = {"load": str(load), "dtype": dtype, "peer_dtype": peer.dtype, "requests": count}
    return {**about, **rounds, "ratio": us / them}


def rounds_until(until: float) -> Iterator[int]:
    """Rounds until another one, as long as the longest so far, would end after `until` on the monotonic clock."""
    longest = 0.0
    for number in range(MOST_ROUNDS):
        began = time.monotonic()
        if number >= FEWEST_ROUNDS and began + longest > until:
            return
        yield number
        longest = max(longest, time.monotonic() - began)


def send(work: Work, at_once: int, count: int, warm_up: float) -> float:
    """Requests per second of `count` requests to the server. Raises BenchError if one fails or is answered wrongly."""
    outcome = run_clients(work, Load(at_once, None, count, None, warm_up, TIMEOUT_S, seed=0), 1)
    if outcome.samples.errors or outcome.samples.wrong:
        raise BenchError(f"requests failed: {outcome.samples.errors}; wrong vectors: {outcome.samples.faults}")
    return outcome.requests_per_second


def compare_tokenizer(folder: str) -> dict[str, float]:
    """The tokenizer model's work for requests of FULL_LOAD, against the library it uses, in this process."""
    ours, library = TextTokenizer(read_model_files(folder)), Tokenizer.from_file(f"{folder}/tokenizer.json")
    size = FULL_LOAD.sentences
    texts = exact_length_texts(library, FULL_LOAD.tokens, size * TOKENIZED_BATCHES, seed=1)
    spent = []
    for start in [*range(0, len(texts), size)] * TOKENIZED_REPEAT:
        batch = texts[start : start + size]
        encoded = [text.encode() for text in batch]
        began = time.perf_counter()
        ours.encode_requests([(encoded, DEFAULTS)])
        middle = time.perf_counter()
        library.encode_batch_fast(batch)
        spent.append((middle - began, time.perf_counter() - middle))
    us, library_us = (np.median(spent, axis=0) / size * 1e6).tolist()
    ratio = us / library_us
    print(f"tokenizer stage: {us:.1f} µs per sentence, tokenizers called directly {library_us:.1f}: {ratio:.2f} x")
    return {"microseconds": us, "library_microseconds": library_us, "ratio": ratio}


def compare_memory(server: RunningServer, tokenizer: Tokenizer) -> dict[str, float]:
    """Memory of server and stubs at rest, after EARLY and after LATE requests of varied sizes and lengths."""
    rng = np.random.default_rng(2)
    texts = [text for length in range(3, 120, 3) for text in exact_length_texts(tokenizer, length, 8, seed=length)]
    # Most are short, because 10,000 long ones would take two cores an hour.
    sizes = [*rng.integers(2, 33, 16).tolist(), *[1] * 400]
    work = Work(GrpcSender(server.target), [encode_request(rng.choice(texts, size).tolist()) for size in sizes])
    memory = []
    for count in (EARLY, LATE - EARLY):
        send(work, FULL_LOAD.at_once, count, 0)
        # Without work the engine returns cached memory; what it keeps is what can grow.
        time.sleep(2 * REST_AFTER_S + 1)
        memory.append(server_memory_mib(server.process.pid))
    early, late = memory
    growth = late / early - 1
    print(f"memory: {early:,.0f} MiB after {EARLY:,} requests, {late:,.0f} after {LATE:,}: {growth:+.2%}")
    return {"early_mib": early, "late_mib": late, "growth": growth}


BASELINES = Path(__file__).resolve().parents[2] / "results" / "quick-baseline.json"
ALLOWED_DROP = 0.20
UNEVEN = 0.10
"""If a side's best two rounds differ by more, other work may have disturbed even the best one."""


def conclude(environment: Mapping[str, Any], rows: list[dict[str, Any]], update: bool, path: Path) -> None:
    """Print what the ratios mean, or store them in the place of older ones of the same loads and kind of machine.

    environment: as `describe_environment` returns it. Raises BenchError for a drop, and for rounds of a busy machine
    that would be stored.
    """
    machine = environment["machine"]
    kind = f"{machine['cpu']}, {machine['cores']} cores"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ratios = {row["load"]: row["ratio"] for row in rows}
    uneven = uneven_rounds(rows)
    for line in uneven:
        print(f"the machine was busy: {line}")
    if update:
        if uneven:
            raise BenchError(f"nothing is written to {path.name}: measure again on a quiet machine")
        old = known.get(kind, {"ratios": {}, "rows": []})
        kept = [{"when": old.get("when"), **row} for row in old["rows"] if row["load"] not in ratios]
        dated = [{"when": environment.get("when"), **row} for row in rows]
        known[kind] = {**environment, "ratios": old["ratios"] | ratios, "rows": [*kept, *dated]}
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(f"wrote the baseline of {kind} to {path.name}")
    elif kind not in known:
        others = "; ".join(sorted(known)) or "no machine"
        print(f"nothing to compare with: there is no baseline of {kind}, only of {others} (--update writes one)")
    elif dropped := find_drops(ratios, known[kind]["ratios"]):
        raise BenchError("; ".join(dropped))
    else:
        print(f"no ratio is more than 20 % below the baseline of {kind}")


def find_drops(ratios: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is more than ALLOWED_DROP below the committed one."""
    return [
        f"{name}: {ratio:.2f} x is {1 - ratio / committed[name]:.0%} below the committed {committed[name]:.2f} x"
        for name, ratio in ratios.items()
        if name in committed and ratio < committed[name] * (1 - ALLOWED_DROP)
    ]


def uneven_rounds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each side of each load whose best two rounds differ by more than UNEVEN."""
    lines = []
    for row in rows:
        for side in ("ours", "sentence_transformers"):
            *_, second, best = sorted(row[side])
            if second < best * (1 - UNEVEN):
                name = side.replace("_", "-")
                lines.append(f"{row['load']}, {name}: the best rounds are {second:,.0f} and {best:,.0f} sentences/s")
    return lines


if __name__ == "__main__":
    run_script("bench", __doc__, full, quick)
