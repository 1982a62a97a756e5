"""A library that computes vectors on a CPU, in its own environment: takes turns that are asked for on stdin.

    python library_main.py KIND MODEL FOLDER

KIND: sentence-transformers or fastembed, then perhaps -onnx or -openvino, and -bfloat16 or -int8. Or openvino-forward,
whose MODEL is a graph: the bare forward over random tokens. FOLDER: for models in ONNX. A turn is a line of JSON:
{"texts": […], "tokens": …, "seconds": …}. Its answer: {"calls", "cpu_seconds", "latencies", "vectors"}.
The first line says that the model is loaded.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[list[str], int], Any]
"""From texts of this many tokens each to vectors [texts, dimensions]."""

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


def main() -> None:
    """Load the model; answer turns until stdin ends."""
    kind, model, folder = sys.argv[1:]
    embed = load(kind, model, Path(folder))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts, tokens = asked["texts"], asked["tokens"]
        vectors = embed(texts, tokens)
        latencies: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while not latencies or time.perf_counter() - began < asked["seconds"]:
            sent = time.perf_counter()
            embed(texts, tokens)
            latencies.append(time.perf_counter() - sent)
        spent = {"calls": len(latencies), "cpu_seconds": time.process_time() - cpu, "latencies": latencies}
        print(json.dumps({**spent, "vectors": np.asarray(vectors, np.float64).tolist()}), flush=True)


def load(kind: str, model: str, folder: Path) -> Embed:
    """The function that a turn repeats."""
    words = kind.split("-")
    dtype = words.pop() if words[-1] in HINTS else "float32"
    library = "-".join(words)
    if library == "openvino-forward":
        return forward(model, dtype)
    if library == "fastembed":
        return fastembed(in_onnx(model, dtype, folder))
    import torch
    from sentence_transformers import SentenceTransformer

    if library == "sentence-transformers-onnx":
        file = in_onnx(model, dtype, folder)
        more = {"provider": "CPUExecutionProvider", "file_name": f"onnx/{file.name}"}
        encoder = SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=more)
    elif library == "sentence-transformers-openvino":
        config = {"INFERENCE_PRECISION_HINT": HINTS[dtype]}
        encoder = SentenceTransformer(
            model, device="cpu", backend="openvino", model_kwargs={"export": True, "ov_config": config}
        )
    else:
        encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts, _: encoder.encode(texts, batch_size=len(texts), show_progress_bar=False)


def in_onnx(model: str, dtype: str, folder: Path) -> Path:
    """The model in ONNX, as sentence-transformers exports it and, in int8, quantizes it for AVX512-VNNI (dynamic)."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    plain, quantized = folder / "onnx" / "model.onnx", folder / "onnx" / "model_qint8_avx512_vnni.onnx"
    more = {"provider": "CPUExecutionProvider"}
    if not plain.exists():
        SentenceTransformer(model, device="cpu", backend="onnx", model_kwargs={**more, "export": True}).save_pretrained(
            str(folder)
        )
    if dtype == "int8" and not quantized.exists():
        encoder = SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=more)
        export_dynamic_quantized_onnx_model(encoder, "avx512_vnni", str(folder))
    return quantized if dtype == "int8" else plain


def fastembed(file: Path) -> Embed:
    """A model that pools by the mean and normalises, in ONNX Runtime."""
    from fastembed import TextEmbedding  # type: ignore[import-not-found]
    from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]

    name, width = f"local/{file.stem}", json.loads((file.parents[1] / "config.json").read_text())["hidden_size"]
    source = ModelSource(hf=name)
    model_file = f"onnx/{file.name}"
    TextEmbedding.add_custom_model(name, PoolingType.MEAN, True, source, dim=width, model_file=model_file)
    encoder = TextEmbedding(name, specific_model_path=str(file.parents[1]))
    return lambda texts, _: np.stack(list(encoder.embed(texts, batch_size=len(texts))))


def forward(graph: str, dtype: str) -> Embed:
    """The mean of the hidden states that a graph gives for random tokens, without a tokenizer."""
    import openvino

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    if dtype == "int8":
        group = json.loads((Path(graph).parent / "quality.json").read_text())["group"]
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    compiled = openvino.Core().compile_model(graph, "CPU", options)
    request = compiled.create_infer_request()

    def embed(texts: list[str], tokens: int) -> Any:
        ids = np.random.default_rng(0).integers(1000, 20_000, (len(texts), tokens))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return request.infer(given, share_inputs=True, share_outputs=True)[0].mean(axis=1)

    return embed


if __name__ == "__main__":
    main()
