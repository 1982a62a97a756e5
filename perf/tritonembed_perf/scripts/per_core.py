"""Sentences per second of one CPU core, forward alone: our executors and sentence-transformers, in turn.

    python -m tritonembed_perf.scripts.per_core measure MODEL [--shapes 64x50,1x50] [--rounds 7] [--json FILE]

Each system is a process of its own with one thread, and computes while the others wait. The figure is its CPU time:
other work on the machine changes CPU time little, but wall time much.

`--systems onnxruntime,onnxruntime-int8,…` need `pip install --no-deps onnx onnxruntime flatbuffers ml_dtypes`: ONNX
Runtime on the same weights, as FastEmbed and sentence-transformers' ONNX backend run them. Its int8 is that of
sentence-transformers' `export_dynamic_quantized_onnx_model` (dynamic, VNNI), which no gate holds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from typer import Option

from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script

if TYPE_CHECKING:
    from collections.abc import Callable

    Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]

PEER = "sentence-transformers"
SYSTEMS = ("openvino", "openvino-bfloat16", "openvino-int8", "direct", "direct-bfloat16", PEER, f"{PEER}-bfloat16")
ONNX = "onnxruntime"
PRECISIONS = ("bfloat16", "int8")
"""The endings of a system's name; a system without such an ending computes in float32."""

LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "int8": 0.9}
LEAST_SECONDS = 0.2
"""A turn repeats a short batch until this time has passed."""


def measure(
    model: Model,
    context: typer.Context,  # noqa: ARG001
    shapes: Annotated[str, Option(help="SENTENCESxTOKENS, with commas.")] = "64x50,1x50",
    rounds: Annotated[int, Option(min=1, help="Rounds of all systems in turn; medians count.")] = 7,
    systems: Annotated[str, Option(help="Names of systems, with commas.")] = ",".join(SYSTEMS),
    quality: Annotated[float, Option(help="int8's gate (--quantization-quality of the manager).")] = 0.98,
) -> dict[str, Any]:
    """Compare the systems."""
    return {"rows": compare(model, shapes.split(","), rounds, systems.split(","), quality)}


def compare(
    model: str, shapes: Sequence[str], rounds: int, systems: Sequence[str], quality: float
) -> list[dict[str, Any]]:
    """A row for each shape and system. quality: int8's gate, which random weights may miss. Raises BenchError."""
    rows = []
    with ExitStack() as stack:
        running = {name: stack.enter_context(System(name, model, quality)) for name in systems}
        for shape in shapes:
            sentences, tokens = map(int, shape.split("x"))
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
            for _ in range(rounds + 1):
                for name, system in running.items():
                    found[name].append(system.turn(sentences, tokens))
            for name, turns in found.items():
                row = _row(name, shape, sentences, turns[1:], found[next(iter(running))][0]["vectors"])
                rows.append(row)
                print(f"{shape:7} {name:32} {row['per_cpu_second']:8.1f} sentences per CPU second", flush=True)
            if PEER in found:
                _print_ratios(shape, rows)
    return rows


def _row(
    name: str, shape: str, sentences: int, turns: list[dict[str, Any]], expected: list[list[float]]
) -> dict[str, Any]:
    """expected: the first system's vectors. Raises BenchError if the vectors differ."""
    ours, theirs = np.array(turns[0]["vectors"]), np.array(expected)
    cosine = float(np.einsum("ij,ij->i", ours, theirs).min())
    if cosine < LEAST_COSINE[parts_of(name)[1]]:
        raise BenchError(f"{name}: cosine {cosine:.6f} to the first system's vectors")
    rates = [sentences / turn["cpu_seconds"] for turn in turns]
    wall = [turn["seconds"] for turn in turns]
    return {
        "shape": shape,
        "system": name,
        "per_cpu_second": median(rates),
        "rates": rates,
        "seconds": wall,
        "least_cosine": cosine,
    }


def parts_of(name: str) -> tuple[str, str]:
    """A system's kind and precision."""
    kind, _, precision = name.rpartition("-")
    return (kind, precision) if precision in PRECISIONS else (name, "float32")


def _print_ratios(shape: str, rows: list[dict[str, Any]]) -> None:
    of_shape = [row for row in rows if row["shape"] == shape]
    base = next(row["per_cpu_second"] for row in of_shape if row["system"] == PEER)
    print(", ".join(f"{row['system']} {row['per_cpu_second'] / base:.2f} x" for row in of_shape), flush=True)


class System:
    """A process that computes a batch per line of its input."""

    def __init__(self, name: str, model: str, quality: float) -> None:
        self._name = name
        module = [sys.executable, "-m", "tritonembed_perf.scripts.per_core", "system", model]
        command = [*module, "--name", name, "--quality", str(quality)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "System":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def turn(self, sentences: int, tokens: int) -> dict[str, Any]:
        """Seconds and CPU seconds of a batch, and its vectors with length 1."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{sentences} {tokens}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise BenchError(f"{self._name} has ended; its output has the reason")


def system(
    model: Model,
    context: typer.Context,  # noqa: ARG001
    name: Annotated[str, Option()] = PEER,
    quality: Annotated[float, Option()] = 0.98,
) -> dict[str, Any]:
    """One system; `measure` starts it."""
    kind, precision = parts_of(name)
    if kind == PEER:
        compute = _sentence_transformers(model, precision)
    elif kind == ONNX:
        compute = _onnxruntime(model, precision)
    else:
        compute = _executor(model, kind, precision, quality)
    for line in sys.stdin:
        sentences, tokens = map(int, line.split())
        ids = np.random.default_rng(0).integers(1000, 20_000, (sentences, tokens))
        vectors = compute(ids)
        count, began, cpu = 0, time.perf_counter(), time.process_time()
        while not count or time.perf_counter() - began < LEAST_SECONDS:
            compute(ids)
            count += 1
        spent = {"seconds": (time.perf_counter() - began) / count, "cpu_seconds": (time.process_time() - cpu) / count}
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        print(json.dumps({**spent, "vectors": unit.tolist()}), flush=True)
    return {}


def _executor(model: str, name: str, precision: str, quality: float) -> "Compute":
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    engine = {"executor": name, "reference": "off", "quantization_quality": quality}
    # int8 leaves the type of what it does not quantize to the executor.
    vllm = {"quantization" if precision == "int8" else "dtype": precision}
    settings = ModelSettings.model_validate({"model": model, "vllm": vllm, "engine": engine})
    executor = create_executor(settings, read_model_files(model), "cpu")

    def compute(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return executor.launch(TokenIds.join([row.astype("<i4").tobytes() for row in ids])).result()

    return compute


def _sentence_transformers(model: str, dtype: str) -> "Compute":
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    def compute(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        given = torch.from_numpy(ids)
        with torch.inference_mode():
            found = loaded({"input_ids": given, "attention_mask": torch.ones_like(given)})["sentence_embedding"]
        vectors: npt.NDArray[np.float32] = found.float().numpy()
        return vectors

    return compute


def _onnxruntime(model: str, precision: str) -> "Compute":
    """A model that pools by the mean, in ONNX Runtime."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    class States(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """int64 [sentences, tokens] to float32 [sentences, tokens, hidden size]."""
            states: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return states

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        file, names = f"{folder}/model.onnx", ["input_ids", "attention_mask"]
        axes = {name: {0: "sentences", 1: "tokens"} for name in [*names, "states"]}
        ids = torch.full((2, 7), 5)
        torch.onnx.export(
            States(),
            (ids, torch.ones_like(ids)),
            file,
            input_names=names,
            output_names=["states"],
            dynamic_axes=axes,
            dynamo=False,
        )
        if precision == "int8":
            quantize_dynamic(file, f"{folder}/int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
            file = f"{folder}/int8.onnx"
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def compute(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        states = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        vectors: npt.NDArray[np.float32] = states.mean(axis=1)
        return vectors

    return compute


if __name__ == "__main__":
    run_script("per_core", __doc__, measure, system)
