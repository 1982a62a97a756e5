"""A server on a CPU: the time of its start, and sentences per CPU second through gRPC.

    python -m tritonembed_perf.scripts.cpu_server start MODEL [--rounds 3] [--json FILE] [-- replica options]
    python -m tritonembed_perf.scripts.cpu_server served MODEL [--shapes 64x50,1x50] [--rounds 5] [--json FILE]

`start`: from the start of `tritonembed-manager replica` to READY, in seconds and in CPU seconds of all its processes.
On a quiet machine of two cores, READY takes about half as long as the CPU seconds, which other work changes little.

`served`: one server per precision. All of them run, and one is used at a time, in turn. The figure is the CPU time of
all of a server's processes; latencies mean something on a quiet machine only.
"""

import json
import os
import random
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil  # type: ignore[import-untyped]
import typer
from typer import Option

from tritonembed import EmbeddingClient
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import RunningServer, running_server, server_memory_mib
from tritonembed_perf.server_use import ServerProcesses

PRECISIONS = {
    "float32": (),
    "bfloat16": ("--dtype", "bfloat16"),
    "int8": ("--quantization", "int8"),
}
LEAST_SECONDS = 2.0
"""A turn repeats a request until this time has passed."""

SPECIAL_TOKENS = 2
"""The special tokens at the ends of a text, in BERT's vocabulary."""


def start(
    model: Model,
    context: typer.Context,
    rounds: Annotated[int, Option(min=1, help="Starts; the first one may have to convert the model.")] = 3,
) -> dict[str, Any]:
    """Start a server several times."""
    rows = []
    for _ in range(rounds):
        began = time.perf_counter()
        with running_server(model, ["--device", "cpu", *context.args]) as server:
            seconds = time.perf_counter() - began
            row = {
                "seconds": seconds,
                "cpu_seconds": _cpu_seconds(server),
                "memory_mib": server_memory_mib(server.process.pid),
                "load": os.getloadavg()[0],
            }
        rows.append(row)
        print(
            f"READY after {row['seconds']:5.1f} s and {row['cpu_seconds']:5.1f} CPU seconds;"
            f" {row['memory_mib']:.0f} MiB; load {row['load']:.1f}",
            flush=True,
        )
    return {"rows": rows}


def served(
    model: Model,
    context: typer.Context,  # noqa: ARG001
    shapes: Annotated[str, Option(help="SENTENCESxTOKENS, with commas.")] = "64x50,1x50",
    rounds: Annotated[int, Option(min=1, help="Of all precisions in turn; medians count.")] = 5,
    precisions: Annotated[str, Option(help="With commas.")] = ",".join(PRECISIONS),
) -> dict[str, Any]:
    """Compare precisions through gRPC."""
    rows = []
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(running_server(model, ["--device", "cpu", *PRECISIONS[name]]))
            for name in precisions.split(",")
        }
        for shape in shapes.split(","):
            sentences, tokens = map(int, shape.split("x"))
            texts = texts_of(Path(model), sentences, tokens)
            turns: dict[str, list[dict[str, float]]] = {name: [] for name in running}
            for _ in range(rounds + 1):
                for name, server in running.items():
                    turns[name].append(_turn(server, texts, tokens))
            for name, found in turns.items():
                row = {
                    "shape": shape,
                    "precision": name,
                    "per_cpu_second": median(turn["per_cpu_second"] for turn in found[1:]),
                    "p50_ms": median(turn["p50_ms"] for turn in found[1:]),
                    "turns": found[1:],
                }
                rows.append(row)
                print(
                    f"{shape:7} {name:9} {row['per_cpu_second']:8.1f} sentences per CPU second,"
                    f" {row['p50_ms']:8.1f} ms per request (p50)",
                    flush=True,
                )
    return {"rows": rows, "load": os.getloadavg()[0]}


def texts_of(folder: Path, sentences: int, tokens: int) -> list[str]:
    """Texts of exactly this many tokens each: whole words of the vocabulary."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    chosen = random.Random(0)
    return [" ".join(chosen.choices(words, k=tokens - SPECIAL_TOKENS)) for _ in range(sentences)]


def _turn(server: RunningServer, texts: list[str], tokens: int) -> dict[str, float]:
    """Raises BenchError if the model saw another number of tokens."""
    latencies: list[float] = []
    with EmbeddingClient(server.target) as client:
        if (seen := set(client.embed(texts).num_tokens.tolist())) != {tokens}:
            raise BenchError(f"the texts have {sorted(seen)} tokens, not {tokens}")
        began, cpu = time.perf_counter(), _cpu_seconds(server)
        while not latencies or time.perf_counter() - began < LEAST_SECONDS:
            sent = time.perf_counter()
            client.embed(texts)
            latencies.append(time.perf_counter() - sent)
        spent = _cpu_seconds(server) - cpu
    return {"per_cpu_second": len(latencies) * len(texts) / spent, "p50_ms": 1000 * median(latencies)}


def _cpu_seconds(server: RunningServer) -> float:
    return ServerProcesses([psutil.Process(server.process.pid)]).cpu_seconds()


if __name__ == "__main__":
    run_script("cpu_server", __doc__, start, served)
