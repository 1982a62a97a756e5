"""Single sentences through our ensemble and through an empty one: the cost of our models on top of Triton.

    python -m tritonembed_perf.scripts.empty_ensemble MODEL [--rounds 5] [--before FOLDER] [-- render options]

The empty ensemble has the same steps, instances, batching and tensors, but its two python models answer each request
with the same bytes, whose sizes are those of the model's own answer. Both servers run; perf_analyzer, a C++ program,
loads them in turn, so that a busy machine slows both. CPU time is that of the server's processes, by part: tritonserver
with its gRPC and queues, the python stubs of the tokenizers, and those of the embedders. Medians of the rounds count,
and ratios are the medians of the rounds' ratios. With a static model, whose forward is a mean of table rows, nearly all
of the difference is the handling of a request; another model's forward is part of the difference. `--before` is another
checkout of this project after `make setup`, whose ensemble is measured in turn with this one's.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil  # type: ignore[import-untyped]
import typer
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import InferenceServerClient
from typer import Option

from tritonembed import EmbeddingClient
from tritonembed_engine.stub.child_python import module_command
from tritonembed_engine.token_ids import BYTES_PER_TOKEN
from tritonembed_manager.server.repository import CONFIG, parse_config
from tritonembed_manager.server.tritonserver import STUB
from tritonembed_manager.tune.loads import LoadShape, WordTexts
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.loadgen.target import read_tokenizer
from tritonembed_perf.options import Loads, Model, run_script
from tritonembed_perf.perf_analyzer import Program, find_program, run_analyzer
from tritonembed_perf.scripts.hop_cpu import cpu_seconds
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_protocol.served import FIRST_MODEL

EMPTY = Path(__file__).parent / "empty_model"
PARAMETER = "empty"
"""The parameter of config.pbtxt that describes the answer of an empty model."""
EMPTY_WAY, BEFORE, OURS = "empty", "before", "ours"
PARTS = ("tritonserver", FIRST_MODEL.tokenizer, FIRST_MODEL.embedder)
FIGURES = ("requests_per_second", "p50_ms", "all_cpu_us")
BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class Round:
    """One way under one load. cpu_us: microseconds of CPU per request, by part of the server."""

    requests_per_second: float
    p50_ms: float
    cpu_us: dict[str, float]

    @property
    def all_cpu_us(self) -> float:
        """The sum over all parts."""
        return sum(self.cpu_us.values())


def empty_ensemble(
    model: Model,
    context: typer.Context,
    loads: Loads = "50x1@1,50x1@64",
    rounds: Annotated[int, Option(min=1, help="Of both in turn; medians count.")] = 5,
    seconds: Annotated[float, Option(min=0.1, help="Of each of perf_analyzer's windows.")] = 2.0,
    before: Annotated[Path | None, Option(help="Another checkout, to compare with.")] = None,
) -> dict[str, Any]:
    """Requests per second, latency and CPU of our ensemble, and of an empty one."""
    shapes = parse_loads(loads)
    if any(shape.sentences != 1 for shape in shapes) or len({shape.tokens for shape in shapes}) > 1:
        raise BenchError("--loads: the empty models answer requests of one sentence, all of one length")
    program, words = find_program(None), WordTexts(read_tokenizer(model)[1])
    ways = [EMPTY_WAY, *([BEFORE] if before is not None else []), OURS]
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repositories = {way: Path(folder) / way for way in ways}
        servers: dict[str, RunningServer] = {}
        for way in reversed(ways):
            python = python_of(before) if way == BEFORE and before is not None else sys.executable
            _render(repositories[way], model, context.args, python)
            if way == EMPTY_WAY:
                write_empty(repositories[way], shapes[0].tokens, _width(servers[OURS]))
            arguments = ["--model-repository", str(repositories[way])]
            servers[way] = stack.enter_context(running_server(None, arguments, python=python))
        for shape in shapes:
            found: dict[str, list[Round]] = {way: [] for way in ways}
            for number in range(rounds + 1):
                for way in ways[:: 1 if number % 2 == 0 else -1]:
                    measured = measure(servers[way], program, shape, words, seconds)
                    # The first round warms up.
                    if number:
                        found[way].append(measured)
            rows.append({"load": str(shape), **compared(found)})
            _show(rows[-1])
    return {"rows": rows}


def python_of(checkout: Path) -> str:
    """The interpreter of a checkout. Its stubs import the packages of their interpreter, whatever PYTHONPATH says."""
    python = checkout.resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        raise BenchError("--before: the checkout has no .venv; run `make setup` there")
    return str(python)


def _render(repository: Path, model: str, arguments: Sequence[str], python: str) -> None:
    render = ["render", str(repository), "--model", model, *arguments]
    command = module_command("tritonembed_manager", *render, python=python)
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise BenchError("the model repository could not be rendered")


def _width(server: RunningServer) -> int:
    with EmbeddingClient(server.target) as client:
        return int(client.embed(["width"]).embeddings.shape[1])


def write_empty(repository: Path, tokens: int, dimensions: int) -> None:
    """Replace both python models of a rendered repository by empty ones. tokens, dimensions: of their answer."""
    answers = {
        FIRST_MODEL.tokenizer: {"token_ids": tokens * BYTES_PER_TOKEN},
        FIRST_MODEL.embedder: {"embedding": dimensions * BYTES_PER_NUMBER, "num_tokens": tokens},
    }
    for name, answer in answers.items():
        folder = repository / name
        config = parse_config((folder / CONFIG).read_text())
        config.parameters[PARAMETER].string_value = json.dumps(answer)
        (folder / CONFIG).write_text(str(text_format.MessageToString(config)))
        shutil.copytree(EMPTY, folder, dirs_exist_ok=True)


def measure(server: RunningServer, program: Program, load: LoadShape, words: WordTexts, seconds: float) -> Round:
    """Load one server."""
    parts, requests = _parts(server), _answered(server)
    before = {part: _spent(processes) for part, processes in parts.items()}
    figures = run_analyzer(program, server.target, load, words, seconds)
    answered = _answered(server) - requests
    cpu = {part: (_spent(processes) - before[part]) / answered * 1e6 for part, processes in parts.items()}
    return Round(figures["requests_per_second"], figures["p50_ms"], cpu)


def _parts(server: RunningServer) -> dict[str, list[int]]:
    """The pids of the server's processes, by part."""
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        words = process.cmdline()
        if not words:
            continue
        program = Path(words[0]).name
        if program == PARTS[0]:
            parts[program].append(process.pid)
        elif program == STUB:
            parts[Path(words[1]).parents[1].name].append(process.pid)
    return parts


def _spent(pids: Sequence[int]) -> float:
    return sum(map(cpu_seconds, pids))


def _answered(server: RunningServer) -> int:
    """Requests that the ensemble has answered so far."""
    with InferenceServerClient(server.target) as client:
        [statistics] = client.get_inference_statistics(FIRST_MODEL.name).model_stats
    return int(statistics.inference_stats.success.count)


def compared(found: dict[str, list[Round]]) -> dict[str, Any]:
    """Medians by way, and the medians of the rounds' ratios to the empty ensemble."""
    row: dict[str, Any] = {}
    for way, rounds in found.items():
        pairs = list(zip(rounds, found[EMPTY_WAY], strict=True))
        row[way] = {
            **{name: median(getattr(one, name) for one in rounds) for name in FIGURES},
            "cpu_us": {part: median(one.cpu_us[part] for one in rounds) for part in rounds[0].cpu_us},
            "ratios": {name: _ratio(pairs, name) for name in FIGURES},
            "rounds": [asdict(one) for one in rounds],
        }
    return row


def _ratio(pairs: Sequence[tuple[Round, Round]], figure: str) -> float:
    ratios: list[float] = [getattr(one, figure) / getattr(empty, figure) for one, empty in pairs]
    return median(ratios)


def _show(row: dict[str, Any]) -> None:
    for way in (EMPTY_WAY, BEFORE, OURS):
        if way not in row:
            continue
        figures, ratios = row[way], row[way]["ratios"]
        parts = ", ".join(f"{part} {spent:.0f}" for part, spent in figures["cpu_us"].items())
        print(
            f"{row['load']} {way:6} {figures['requests_per_second']:8,.0f} requests/s"
            f" ({ratios['requests_per_second']:.2f}), p50 {figures['p50_ms']:6.2f} ms ({ratios['p50_ms']:.2f}),"
            f" {figures['all_cpu_us']:5.0f} µs of CPU per request ({ratios['all_cpu_us']:.2f}): {parts}",
            flush=True,
        )


if __name__ == "__main__":
    run_script("empty_ensemble", __doc__, empty_ensemble)
