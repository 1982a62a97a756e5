"""Our server on a CPU and its alternatives, in turn: sentences per CPU second, and the quality that is left.

    python -m tritonembed_perf.scripts.cpu_peers MODEL [--shapes 64x50,1x50] [--rounds 5] [--python PEER=PATH …]

All systems run, and one of them is used at a time. The figure is the CPU time of all of its processes, without the
client's: other work on the machine changes CPU time little, but wall time much. Servers get requests over their own
protocol, one at a time; libraries get the same texts in their process. `openvino-forward` is the limit: OpenVINO alone,
with our server's graphs, over a batch of the shape, without tokenizer, server and client.

The last column is the share of the calibration texts' ten nearest neighbours that are the same as with
sentence-transformers in float32. --python: for `libraries` (pip install 'sentence-transformers[onnx,openvino]'
fastembed), infinity-emb, …
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from typer import Option

from tritonembed_engine.executors.openvino_graphs import STATES, graphs_of, quantized_of
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.quantization import Floats, calibration_texts, overlap
from tritonembed_engine.settings import ModelSettings
from tritonembed_perf.compare.launching import CannotRunError
from tritonembed_perf.compare.peer import Bench, InProcess, parse_pythons
from tritonembed_perf.compare.peers import ENVIRONMENTS, PROGRAMS, all_peers
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.loadgen.protocols import KServeProtocol, WireProtocol
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.scripts.cpu_server import LEAST_SECONDS, PRECISIONS, texts_of
from tritonembed_perf.server import running_server
from tritonembed_perf.server_use import ServerProcesses

BASE = "sentence-transformers"
OURS = "tritonembed"
FORWARD = "openvino-forward"
LIBRARIES = "libraries"
NETWORK = {f"{BASE}-http": "--parallel 1", "infinity-emb": "--batch-size 64"}
"""Other projects' servers, as in `tritonembed-bench compare`, and their settings."""

SYSTEMS = (
    BASE,
    f"{BASE}-bfloat16",
    f"{BASE}-onnx",
    f"{BASE}-onnx-int8",
    f"{BASE}-openvino",
    f"{BASE}-openvino-bfloat16",
    "fastembed",
    "fastembed-int8",
    *(f"{name}{precision}" for name in NETWORK for precision in ("", "-bfloat16")),
    *(f"{name}{precision}" for name in (OURS, FORWARD) for precision in ("", "-bfloat16", "-int8")),
)
AIM = 1.1
"""Our rate as a multiple of the best network peer's, in the same precision."""

TIMEOUT_S = 300.0
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Turn:
    """The figures of requests one after the other. latencies: seconds. vectors: the answer to one of the requests."""

    calls: int
    cpu_seconds: float
    latencies: list[float]
    vectors: Floats


TakeTurn = Callable[[Sequence[str], int, float], Turn]
"""Sends requests. Arguments: the texts, the tokens of each, and for how many seconds."""


def precision_of(name: str) -> tuple[str, str]:
    """A system's name without its precision, and the precision."""
    kind, _, last = name.rpartition("-")
    return (kind, last) if last in PRECISIONS else (name, "float32")


def compare(
    model: Model,
    context: typer.Context,  # noqa: ARG001
    shapes: Annotated[str, Option(help="SENTENCESxTOKENS, with commas.")] = "64x50,1x50",
    rounds: Annotated[int, Option(min=1, help="Of all systems in turn; medians count.")] = 5,
    systems: Annotated[str, Option(help="With commas; by default all.")] = ",".join(SYSTEMS),
    python: Annotated[list[str], Option(help="PEER=PATH: another Python for that system.")] = [],  # noqa: B006
) -> dict[str, Any]:
    """Compare our server with other systems."""
    names = systems.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise UsageError(f"--systems: {min(unknown)!r} is none of {', '.join(SYSTEMS)}")
    pythons = parse_pythons(python, (*ENVIRONMENTS, LIBRARIES))
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running: dict[str, TakeTurn] = {}
        for name in names:
            print(f"starting {name}", file=sys.stderr, flush=True)
            bench = Bench(Path(model).resolve(), precision_of(name)[1], "cpu", os.cpu_count() or 1, work, pythons)
            try:
                running[name] = stack.enter_context(_started(name, bench))
            except CannotRunError as error:
                missing[name] = str(error)
                print(f"{name}: {error}", flush=True)
        nearest = _nearest(running)
        rows = [row for shape in shapes.split(",") for row in _of_shape(model, shape, rounds, running, nearest)]
    return {"rows": rows, "missing": missing, "load": os.getloadavg()[0]}


def _of_shape(
    model: str, shape: str, rounds: int, running: dict[str, TakeTurn], nearest: dict[str, float]
) -> list[dict[str, Any]]:
    sentences, tokens = map(int, shape.split("x"))
    texts = texts_of(Path(model), sentences, tokens)
    turns: dict[str, list[Turn]] = {name: [] for name in running}
    for number in range(rounds + 1):
        for name, take in running.items():
            turn = take(texts, tokens, LEAST_SECONDS)
            if number:
                turns[name].append(turn)
    rows = []
    for name, found in turns.items():
        rates = [turn.calls * sentences / turn.cpu_seconds for turn in found]
        latencies = [1000 * median(turn.latencies) for turn in found]
        of = {"shape": shape, "system": name, "per_cpu_second": median(rates), "p50_ms": median(latencies)}
        rows.append({**of, "rates": rates, "latencies_ms": latencies, "nearest": nearest.get(name)})
    _print(shape, rows)
    return rows


def _print(shape: str, rows: list[dict[str, Any]]) -> None:
    rates = {row["system"]: row["per_cpu_second"] for row in rows}
    print(f"{shape:26} sentences per CPU second, to {BASE}, p50 ms, ten nearest")
    for row in rows:
        rate, kept = row["per_cpu_second"], row["nearest"]
        ratio = f"{rate / rates[BASE]:6.2f} x" if BASE in rates else ""
        print(f"{row['system']:34} {rate:8.1f} {ratio} {row['p50_ms']:8.1f}  {'' if kept is None else f'{kept:.4f}'}")
    for precision in PRECISIONS:
        ours = rates.get(OURS if precision == "float32" else f"{OURS}-{precision}")
        others = {name: rates[name] for name in rates if precision_of(name)[0] in NETWORK and
                  precision_of(name)[1] == precision}  # fmt: skip
        if ours and others:
            best = max(others, key=lambda name: others[name])
            print(f"{precision}: {ours / others[best]:.2f} x the best network peer, {best} (aim: {AIM} x)")


def _nearest(running: dict[str, TakeTurn]) -> dict[str, float]:
    """By system, the share of the calibration texts' ten nearest neighbours that are the first system's, too."""
    texts = calibration_texts(None)
    vectors = {}
    for name, take in running.items():
        if precision_of(name)[0] != FORWARD:
            parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
            vectors[name] = np.concatenate([take(part, 0, 0).vectors for part in parts])
    first = next(iter(vectors), None)
    return {name: overlap(found, vectors[first]) for name, found in vectors.items()} if first else {}


def _started(name: str, bench: Bench) -> "AbstractContextManager[TakeTurn]":
    kind = precision_of(name)[0]
    if kind == OURS:
        return _ours(bench)
    return _peer(kind, bench) if kind in NETWORK else _library(name, bench)


@contextmanager
def _ours(bench: Bench) -> Iterator[TakeTurn]:
    with running_server(str(bench.model), ["--device", "cpu", *PRECISIONS[bench.dtype]]) as server:
        yield _over_network(KServeProtocol(server.target))


@contextmanager
def _peer(name: str, bench: Bench) -> Iterator[TakeTurn]:
    peer = all_peers()[name]
    peer.prepare(bench)
    with peer.running(bench, NETWORK[name]) as endpoint:
        assert not isinstance(endpoint, InProcess)
        yield _over_network(endpoint)


def _over_network(protocol: WireProtocol) -> TakeTurn:
    processes = ServerProcesses.find(protocol.server)
    if processes is None:
        raise BenchError(f"the processes behind {protocol.server} can't be seen")

    async def take(texts: Sequence[str], seconds: float) -> Turn:
        payload = protocol.encode(texts)
        transport = protocol.sender().open(1, TIMEOUT_S)
        try:
            vectors = protocol.decode(await transport.send(payload, 0), len(texts)).vectors
            latencies: list[float] = []
            began, cpu = time.perf_counter(), processes.cpu_seconds()
            while not latencies or time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                await transport.send(payload, 0)
                latencies.append(time.perf_counter() - sent)
            return Turn(len(latencies), processes.cpu_seconds() - cpu, latencies, vectors)
        finally:
            await transport.close()

    return lambda texts, _, seconds: asyncio.run(take(texts, seconds))


@contextmanager
def _library(name: str, bench: Bench) -> Iterator[TakeTurn]:
    # The first row is of the same sentence-transformers as the servers'.
    ours = name in (BASE, f"{BASE}-bfloat16") or precision_of(name)[0] == FORWARD
    python = sys.executable if ours else bench.pythons.get(LIBRARIES, sys.executable)
    with ExitStack() as stack:
        model = bench.model
        if precision_of(name)[0] == FORWARD:
            model = stack.enter_context(_graph(bench)) / STATES
        command = [python, f"{PROGRAMS}/library_main.py", name, str(model), str(bench.work / "onnx")]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.kill)

        def answer() -> dict[str, Any]:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
            raise CannotRunError(f"{name} has ended; its output has the reason")

        def take(texts: Sequence[str], tokens: int, seconds: float) -> Turn:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"texts": [*texts], "tokens": tokens, "seconds": seconds}) + "\n")
            process.stdin.flush()
            found = answer()
            return Turn(**{**found, "vectors": np.array(found["vectors"], np.float32)})

        answer()
        yield take


@contextmanager
def _graph(bench: Bench) -> Iterator[Path]:
    """The folder of the graph that our server has in this precision."""
    import openvino

    vllm = {"quantization": "int8"} if bench.dtype == "int8" else {"dtype": bench.dtype}
    settings = ModelSettings.model_validate({"model": str(bench.model), "vllm": vllm})
    files = read_model_files(str(bench.model))
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with ExitStack() as stack:
        folder = stack.enter_context(graphs_of(settings, files))
        if bench.dtype == "int8":
            other = "bfloat16" if "BF16" in capabilities else "float32"
            processor = ",".join(sorted(capabilities))
            folder = stack.enter_context(quantized_of(settings, files, other, processor, folder))
        yield folder


if __name__ == "__main__":
    run_script("cpu_peers", __doc__, compare)
