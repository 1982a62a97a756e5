"""The engine's executor alone, without Triton: its speed, its profile, and whether its vectors are right and equal.

    python -m tritonembed_perf.scripts.engine speed MODEL [--device cuda] [--executor direct,scheduler]
        [--shapes 64x512,1x50] [--json FILE]
    python -m tritonembed_perf.scripts.engine speed MODEL --device cuda --executor direct,direct-pooled_rows
    python -m tritonembed_perf.scripts.engine profile MODEL [--device cuda] [--shape 64x50]
    python -m tritonembed_perf.scripts.engine precision MODEL [--device cuda] [--vllm JSON]
    python -m tritonembed_perf.scripts.engine same-text MODEL [--device cuda] [--deterministic]

`speed`: tokens per second and latency by the shape of a batch, of several executors in turn. `profile`: PyTorch's
profiler, by operator on a CPU, by kernel on a GPU. `precision`: cosines to transformers in float32, by length, of the
part of the model that AutoModel loads, without a Dense module. `same-text`: how much a vector depends on the rest of
its batch, and the cost of equal bits (--deterministic); two runs print the same digest if a restart changes nothing.
"""

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Option

from tritonembed_manager.commands.options import with_options
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.loadgen.checks import row_cosines
from tritonembed_perf.options import run_script
from tritonembed_perf.scripts.executor import ExecutorOptions, LoadedExecutor, load_executor

if TYPE_CHECKING:
    from tritonembed_engine.token_ids import TokenIds

Rows = list[dict[str, Any]]
Vectors = npt.NDArray[np.float32]

SHAPES = {
    "cuda": ((655, 50), (64, 512), (225, 50), (160, 50), (64, 50), (16, 50), (1, 50), (16, 512), (1, 512)),
    "cpu": ((64, 50), (16, 300), (16, 50), (1, 300), (1, 50), (1, 10)),
}
"""Sentences x tokens of a batch, by device; those that the model or an executor can't hold are left out."""

ROUNDS, SECONDS_PER_ROUND = 7, 0.5
ALONE, SECONDS_ALONE = 70, 3.0
"""Batches and seconds of the latency's measurement, one batch in flight. At the time's end it stops, after three
batches at least."""

PROFILED_BATCHES, PROFILED_ROWS = 5, 12
LENGTHS, SENTENCES_OF_LENGTH = (1, 2, 5, 10, 20, 50, 100, 200, 512), 32
SAME_SENTENCES, SAME_LONGEST = 64, 300
"""`same-text`: the number of sentences, and the most tokens of one; the fewest are 3."""

SAME_LOADS, SAME_REQUESTS = {"cpu": (64, 50), "cuda": (655, 50)}, 4


def speed(
    options: ExecutorOptions,
    shapes: Annotated[str, Option(None, help="SENTENCESxTOKENS of batches, with commas.", show_default=False)] = "",
) -> dict[str, Any]:
    """Tokens per second, and the latency of a batch alone, by its shape."""
    chosen = [read_shape("--shapes", shape) for shape in shapes.split(",")] if shapes else SHAPES[options.device]
    executors = [load_executor(replace(options, executor=name)) for name in options.executor.split(",")]
    rows = [row for shape in fitting(executors, chosen) for row in measure_shape(executors, *shape)]
    if not rows:
        raise BenchError("none of the shapes can be measured")
    return {"rows": rows}


def read_shape(option: str, text: str) -> tuple[int, int]:
    """Sentences and tokens. Raises UsageError."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise UsageError(f"{option}: {text!r} is not SENTENCESxTOKENS")
    sentences, tokens = map(int, text.split("x"))
    return sentences, tokens


def fitting(executors: Sequence[LoadedExecutor], wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes that can be run; for each of the others, print why it is left out."""
    shapes = []
    for sentences, tokens in wanted:
        if reasons := list(filter(None, (loaded.reason_against(sentences, tokens) for loaded in executors))):
            print(f"{sentences:>5} x {tokens:<4} left out: {reasons[0]}", flush=True)
        else:
            shapes.append((sentences, tokens))
    return shapes


def measure_shape(executors: Sequence[LoadedExecutor], sentences: int, tokens: int) -> Rows:
    """One batch shape, of random ids: a row per executor. Executors take turns; medians count."""
    rng = np.random.default_rng(0)
    batches = [executors[0].random_batch(rng, sentences, tokens) for _ in range(4)]
    for loaded in executors:
        for batch in batches:
            loaded.seconds(batch)
    rates = np.median([[_rate(loaded, batches) for loaded in executors] for _ in range(ROUNDS)], axis=0)
    rows: Rows = []
    for loaded, rate in zip(executors, (rates * sentences * tokens).tolist(), strict=True):
        alone = max(3, min(ALONE, int(SECONDS_ALONE / loaded.seconds(batches[0]))))
        latency = float(np.median([loaded.seconds(batches[i % 4]) for i in range(alone)])) * 1e3
        row = {"executor": loaded.label, "sentences": sentences, "tokens": tokens}
        rows.append(row | {"tokens_per_second": rate, "latency_ms": latency})
        ratio = f"   the first has {rows[0]['tokens_per_second'] / rate:.2f} x" if len(rows) > 1 else ""
        print(
            f"{sentences:>5} x {tokens:<4} {rate / 1e3:8,.1f} K tokens/s {rate / tokens:10,.1f} sentences/s "
            f"{latency:8.2f} ms alone   {loaded.label}{ratio}",
            flush=True,
        )
    return rows


def _rate(loaded: LoadedExecutor, batches: "list[TokenIds]") -> float:
    """Batches per second, as many in flight as the executor takes."""
    count, pending, start = 0, deque[Any](), time.perf_counter()
    while time.perf_counter() - start < SECONDS_PER_ROUND:
        pending.append(loaded.executor.launch(batches[count % len(batches)]))
        if len(pending) == loaded.executor.depth:
            pending.popleft().result()
        count += 1
    for launched in pending:
        launched.result()
    return count / (time.perf_counter() - start)


def profile(
    options: ExecutorOptions, shape: Annotated[str, Option("64x50", help="SENTENCESxTOKENS of the batch.")]
) -> dict[str, Any]:
    """The operators or kernels that take most of a batch's time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    sentences, tokens = read_shape("--shape", shape)
    loaded = load_executor(options)
    if reason := loaded.reason_against(sentences, tokens):
        raise BenchError(f"--shape {sentences}x{tokens}: {reason}")
    batch = loaded.random_batch(np.random.default_rng(0), sentences, tokens)
    times = [loaded.seconds(batch) for _ in range(2 * PROFILED_BATCHES)][PROFILED_BATCHES:]
    print(f"{sentences} x {tokens}: {np.median(times) * 1e3:.2f} ms per batch")
    on_gpu = options.device == "cuda"
    with profiled(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_BATCHES):
            loaded.seconds(batch)
    rows = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        milliseconds, calls = microseconds / PROFILED_BATCHES / 1e3, event.count / PROFILED_BATCHES
        rows.append({"name": event.key[:90], "calls": calls, "milliseconds": milliseconds})
    rows = sorted(rows, key=lambda row: -row["milliseconds"])[:PROFILED_ROWS]
    for row in rows:
        print(f"{row['milliseconds']:9.2f} ms  {row['calls']:5.1f} x  {row['name']}")
    return {"rows": rows}


def precision(options: ExecutorOptions) -> dict[str, Any]:
    """Cosines to transformers in float32, by length."""
    loaded = load_executor(options)
    longest = loaded.files.max_length
    embed = reference(options.model, json.loads(options.vllm).get("revision"), loaded.files.pooling[0], options.device)
    rng = np.random.default_rng(0)
    rows = []
    for length in [*(length for length in LENGTHS if length < longest), longest]:
        at_once = max(1, min(loaded.most_tokens // length, loaded.executor.max_batch_sentences))
        ids = loaded.random_ids(rng, SENTENCES_OF_LENGTH, length)
        batches = [ids[start : start + at_once] for start in range(0, len(ids), at_once)]
        cosines = np.concatenate([row_cosines(loaded.embed(batch), embed(batch)) for batch in batches])
        rows.append({"tokens": length, "lowest": float(cosines.min()), "median": float(np.median(cosines))})
        print(f"{length:>5} tokens: cosine {cosines.min():.6f} and more, median {np.median(cosines):.6f}", flush=True)
    return {"rows": rows}


def reference(
    model: str, revision: str | None, pooling: str, device: str
) -> Callable[[npt.NDArray[np.int32]], Vectors]:
    """transformers' vectors of ids [sentences, tokens]."""
    import torch
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(model, revision=revision or "main", dtype=torch.float32).to(device).eval()

    def embed(ids: npt.NDArray[np.int32]) -> Vectors:
        with torch.inference_mode():
            hidden = loaded(input_ids=torch.from_numpy(ids).long().to(device)).last_hidden_state
            pooled = {"mean": hidden.mean(1), "cls": hidden[:, 0], "lasttoken": hidden[:, -1]}[pooling]
            vectors: Vectors = pooled.cpu().numpy()
            return vectors

    return embed


def same_text(options: ExecutorOptions) -> dict[str, Any]:
    """Whether a vector depends on what else is in its batch."""
    from tritonembed_engine.engine import EmbeddingEngine

    loaded = load_executor(options)
    engine = EmbeddingEngine(loaded.executor)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, min(SAME_LONGEST, loaded.files.max_length), SAME_SENTENCES)
    sentences = [loaded.random_ids(rng, 1, int(length)).tobytes() for length in lengths]
    alone = np.concatenate([engine.submit([sentence]).result() for sentence in sentences])
    together = engine.submit(sentences).result()
    backwards = engine.submit(sentences[::-1]).result()[::-1]
    rows = [_difference("alone and among all", alone, together), _difference("in another order", together, backwards)]
    print(f"digest of the vectors alone: {hashlib.sha256(alone.tobytes()).hexdigest()[:16]}")
    count, tokens = SAME_LOADS[options.device]
    request = [ids.tobytes() for ids in loaded.random_ids(np.random.default_rng(1), count, tokens)]
    times = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        for future in [engine.submit(request) for _ in range(SAME_REQUESTS)]:
            future.result()
        times.append(time.perf_counter() - started)
    # The first round is the warm-up.
    rate = SAME_REQUESTS * count * tokens / np.median(times[1:])
    print(f"{count} x {tokens} tokens, {SAME_REQUESTS} at once: {rate / 1e3:,.1f} K tokens/s (median of {ROUNDS})")
    return {"rows": rows}


def _difference(name: str, left: Vectors, right: Vectors) -> dict[str, Any]:
    """Compare two sets of vectors, and print the result."""
    other, least = int((left != right).any(axis=1).sum()), float(row_cosines(left, right).min())
    print(f"{name}: {other} of {len(left)} vectors have other bits, cosine {least:.7f} and more")
    return {"sentences": name, "other_bits": other, "cosine": least}


MEASUREMENTS = (speed, profile, precision, same_text)

if __name__ == "__main__":
    run_script("engine", __doc__, *(with_options(measure, variables=False) for measure in MEASUREMENTS))
