"""Quantize a converted model to int8, in a process of its own (see `executors.openvino_graphs`).

Weights are int8 in the graph. Activations are quantized by OpenVINO per token and group of channels, whatever the text
("dynamic quantization"): the calibration texts give only the factors of the smoothing, and the gate.

Run as `python -m tritonembed_engine.openvino_quantization`.
"""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_engine.distance import of_vectors
from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.executors.openvino_executor import OpenVinoExecutor, executor_of, options_of
from tritonembed_engine.executors.openvino_graphs import QUALITY, STATES, STEPS
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.quantization import Floats, calibration_texts, choose, overlap, quantize, smoothing_factors
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds

GROUPS = (128, 64, 32)
"""Numbers of channels that share a scale; the largest that divides all widths is used."""

TEXTS_OF_ERRORS = 64
"""Calibration texts with which single products are compared."""

BATCH = 64


@dataclass(frozen=True)
class Product:
    """A matrix product with constant weights. source: a name of its input."""

    node: Any
    source: str

    @property
    def weights(self) -> Floats:
        """float32 [outputs, inputs]."""
        found: Floats = self.node.input_value(1).get_node().data
        return found


def products_of(graph: Any) -> dict[str, Product]:
    """The products of a graph, by name."""
    found = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes().get("transpose_a"):
            continue
        weights = node.input_value(1).get_node()
        is_linear = weights.get_type_name() == "Constant" and len(weights.shape) == 2
        if is_linear and node.get_attributes().get("transpose_b"):
            given = node.input_value(0)
            source = f"{given.get_node().get_friendly_name()}:{given.get_index()}"
            found[node.get_friendly_name()] = Product(node, source)
    return found


def group_of(products: Collection[Product]) -> int:
    """The channels that share a scale. Raises ModelError if the model has no products of such widths."""
    widths = {product.weights.shape[1] for product in products}
    for group in GROUPS:
        if widths and not any(width % group for width in widths):
            return group
    raise ModelError("int8 needs a model whose layers' widths are multiples of 32")


def quantized(graph: Any, names: Collection[str], largest: dict[str, Floats], group: int) -> Any:
    """The graph with int8 weights in these products. largest: of each source, [inputs] (see `smoothing_factors`)."""
    from openvino import opset13 as ops

    products = products_of(graph)
    sharing: dict[str, list[Product]] = {}
    for name in names:
        sharing.setdefault(products[name].source, []).append(products[name])
    for source, members in sharing.items():
        factors = smoothing_factors(largest[source], [member.weights for member in members])
        smooth = ops.multiply(members[0].node.input_value(0), ops.constant(1 / factors))
        for member in members:
            shape = ops.constant(np.array(member.weights.shape, np.int64))
            integers, scales = quantize(member.weights * factors, group)
            restored = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scales))
            member.node.input(0).replace_source_output(smooth.output(0))
            member.node.input(1).replace_source_output(ops.reshape(restored, shape, False).output(0))
    return graph


class _Quantizer:
    def __init__(self, settings: ModelSettings, files: ModelFiles, dtype: str, graphs: Path) -> None:
        import openvino

        self._core = openvino.Core()
        self._files, self._dtype, self._graphs = files, dtype, graphs
        self._steps = self._core.compile_model(graphs / STEPS, "CPU", options_of("float32")) if files.steps else None
        self._ids = calibration_ids(settings.engine.calibration, files)
        products = products_of(self._read())
        self.group = group_of(products.values())
        self.sizes = {name: product.weights.size for name, product in products.items()}
        self._expected = self._vectors(self._read(), "float32", self._ids)
        # Every second text gives the factors; the gate uses all of them.
        self._largest = self._largest_values(self._ids[::2])
        self._few = self._ids[:: max(1, len(self._ids) // TEXTS_OF_ERRORS)]
        self._expected_of_few = self._expected[:: max(1, len(self._ids) // TEXTS_OF_ERRORS)]

    def _read(self) -> Any:
        return self._core.read_model(self._graphs / STATES)

    def graph(self, names: Sequence[str]) -> Any:
        return quantized(self._read(), names, self._largest, self.group)

    def error_of(self, name: str) -> float:
        """The mean distance of vectors, if this product alone is quantized."""
        found = self._vectors(self.graph([name]), self._dtype, self._few)
        return float(of_vectors(found, self._expected_of_few).mean())

    def quality_of(self, names: Sequence[str]) -> float:
        """The overlap of the ten nearest with those of float32, if these products are quantized."""
        return overlap(self._vectors(self.graph(names), self._dtype, self._ids), self._expected)

    def _vectors(self, graph: Any, dtype: str, ids: Sequence[bytes]) -> Floats:
        executor = self._executor(graph, dtype)
        parts = [
            executor.launch(TokenIds.join(ids[start : start + BATCH])).result() for start in range(0, len(ids), BATCH)
        ]
        executor.close()
        return np.concatenate(parts)

    def _executor(self, graph: Any, dtype: str) -> OpenVinoExecutor:
        compiled = self._core.compile_model(graph, "CPU", options_of(dtype, self.group))
        return executor_of(compiled, self._steps, self._files, dtype, max(4096, self._files.max_length), BATCH)

    def _largest_values(self, ids: Sequence[bytes]) -> dict[str, Floats]:
        """Of each source of a product, the largest absolute value of each channel."""
        from openvino import opset13 as ops

        graph = self._read()
        sources = {product.source: product.node.input_value(0) for product in products_of(graph).values()}
        results = []
        for output in sources.values():
            # Over all axes but the last: the graph returns maxima, so no activations have to be kept.
            axes = ops.constant(np.arange(output.get_partial_shape().rank.get_length() - 1))
            results.append(ops.reduce_max(ops.absolute(output), axes, keep_dims=False).output(0))
        graph.add_outputs(results)
        request = self._core.compile_model(graph, "CPU", options_of("float32")).create_infer_request()
        largest: dict[str, Floats] = {}
        for one in ids:
            # One text at a time, because the values of padding must not count.
            row = np.frombuffer(one, "<i4").astype(np.int64)[None]
            request.infer({"input_ids": row, "attention_mask": np.ones_like(row)})
            for place, source in enumerate(sources):
                found = request.get_output_tensor(1 + place).data.copy()
                largest[source] = np.maximum(largest.get(source, found), found)
        return largest


def calibration_ids(file: str | None, files: ModelFiles) -> list[bytes]:
    """The token ids of the calibration texts. Raises ModelError as `calibration_texts` does."""
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    tokenizer = TextTokenizer(files)
    texts = calibration_texts(file)
    answers = tokenizer.encode_requests([([text.encode()], EmbedParameters()) for text in texts])
    # A tokenizer can refuse a text, such as one without tokens.
    return [answer[0] for answer in answers if isinstance(answer, list)]


def quantize_model(settings: ModelSettings, files: ModelFiles, dtype: str, graphs: Path, folder: Path) -> None:
    """Write the graph and its quality. dtype: of the other products. Raises ModelError if the gate is missed."""
    import openvino

    quantizer = _Quantizer(settings, files, dtype, graphs)
    chosen = choose(quantizer.sizes, quantizer.error_of, quantizer.quality_of, settings.engine.quantization_quality)
    openvino.save_model(quantizer.graph(chosen.quantized), folder / STATES, compress_to_fp16=False)
    (folder / QUALITY).write_text(json.dumps({**chosen.as_json(), "group": quantizer.group}))


def main() -> None:
    """Arguments: one JSON object of `settings`, `dtype`, `graphs`, `folder`. Exit code 1 with one line for an error."""
    given = json.loads(sys.argv[1])
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    settings = ModelSettings.model_validate(given["settings"])
    try:
        files = read_model_files(settings.model, settings.revision, settings.max_model_len)
        quantize_model(settings, files, given["dtype"], Path(given["graphs"]), Path(given["folder"]))
    except ModelError as error:
        sys.exit(f"tritonembed: {error}")
    except Exception as error:
        sys.exit(f"tritonembed: {reason_of(error)}")


if __name__ == "__main__":
    main()
