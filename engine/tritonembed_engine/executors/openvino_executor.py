"""The openvino executor: an encoder on a CPU, over groups of sentences of similar length.

oneDNN's products are about twice as fast as torch's, and a start from the cache imports neither torch nor vLLM.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import EmbedError, ExecutionFailed, OutOfMemory
from tritonembed_engine.executors.base import Pending, Ready, return_free_memory
from tritonembed_engine.executors.loading import INT8, asked_dtype, filler_id
from tritonembed_engine.executors.openvino_graphs import (
    QUALITY,
    STATES,
    STEPS,
    OpenVinoUnavailable,
    graphs_of,
    quantized_of,
)
from tritonembed_engine.executors.padding import Grouping, PaddedGroup, pool, pool_spans
from tritonembed_engine.model.encoders import IN_OPENVINO
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.request import NO_TOKEN_OUTPUTS, Adapted, Choices
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.process import announce, imports_that_stay
from tritonembed_engine.token_ids import ID_MASK, ONE_TOKEN, TYPE_BIT, Spans, TokenIds

if TYPE_CHECKING:
    from tritonembed_engine.executors.token_heads import TokenHeads

logger = logging.getLogger(__name__)

GROUPING = Grouping(64, 1024)
"""A pass costs little, and the results of 1,024 tokens stay in the cache."""

_FOLLOWED = ("dtype", "max_model_len", "revision")
"""vLLM's engine arguments that this executor follows, or that were followed before it is made."""

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoExecutor:
    """Runs a converted model; `launch` returns when the batch is done."""

    name = "openvino"
    depth = 1
    refused_id: int | None = None
    on_any_thread = True
    quality: float | None = None
    """Of an int8 model: the share of each calibration text's ten nearest that it keeps."""

    def __init__(
        self,
        states: Any,
        steps: Any | None,
        poolings: Sequence[Pooling],
        dtype: str,
        max_batch_tokens: int,
        max_batch_sentences: int,
        padding_id: int,
        heads: "TokenHeads | None" = None,
        has_types: bool = False,
        unseen: int | None = None,
    ) -> None:
        """states, steps: compiled graphs (see `openvino_graphs`). dtype: what `states` computes in, by torch's name.

        The others are those of `TransformersExecutor`.
        """
        self._states: Any = states.create_infer_request()
        self._steps: Any = None if steps is None else steps.create_infer_request()
        self._poolings = list(poolings)
        self.dtype = dtype
        self._padding_id = padding_id
        self._heads = heads
        self._has_types = has_types
        self._unseen = unseen
        self.pools_spans = self._poolings == [Pooling.MEAN]
        self.token_dimensions = None if heads is None else heads.dimensions
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch(ONE_TOKEN).result().shape[1])

    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),  # noqa: ARG002 - see `factory`
    ) -> Pending:
        """Compute the batch, one forward pass per group."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        begins = np.asarray(skips if skips is not None else np.zeros(len(sentences)), dtype=np.int64)
        rows, parts = [], []
        flat: npt.NDArray[np.float32] | None = None
        for group in GROUPING.groups(sentences, self._padding_id):
            hidden = self._hidden(group)
            lengths = np.diff(group.cu_seqlens).astype(np.int64)
            if spans is None:
                rows.append(group.rows)
                parts.append(pool(self._poolings, hidden, lengths, begins[group.rows]))
            else:
                rows.append(spans.rows_of(group.rows))
                cut = Spans.concatenate([spans.cut(row, row + 1) for row in group.rows])
                parts.append(pool_spans(hidden, cut))
            if choices:
                if flat is None:
                    flat = np.empty((sentences.tokens, hidden.shape[2]), np.float32)
                for row, length, states in zip(group.rows, lengths, hidden, strict=True):
                    flat[starts[row] : starts[row] + length] = states[:length]
        pooled = np.empty((sum(map(len, rows)), parts[0].shape[1]), np.float32)
        for places, part in zip(rows, parts, strict=True):
            pooled[places] = part
        vectors = pooled if self._steps is None else np.array(self._steps.infer([pooled])[0])
        return Ready(vectors, NO_TOKEN_OUTPUTS if flat is None else self._of_tokens(flat, sentences, choices or {}))

    def _hidden(self, group: PaddedGroup) -> npt.NDArray[np.float32]:
        """Hidden states [sentences, longest, hidden size] of a group; the next call overwrites them."""
        seen = group.mask if self._unseen is None else group.seen(self._unseen)
        given = {"input_ids": group.ids, "attention_mask": seen.astype(np.int64)}
        if self._has_types:
            given |= {"input_ids": group.ids & ID_MASK, "token_type_ids": group.ids >> TYPE_BIT}
        hidden: npt.NDArray[np.float32] = self._states.infer(given, share_inputs=True, share_outputs=True)[0]
        return hidden

    def _of_tokens(self, flat: npt.NDArray[np.float32], sentences: TokenIds, choices: Choices) -> Any:
        # Imported here: only models with outputs per token need it.
        import torch

        assert self._heads is not None
        with torch.inference_mode():
            return self._heads(torch.from_numpy(flat), sentences, choices)

    def explain(self, error: Exception) -> EmbedError:
        """The engine's own exception. OpenVINO raises RuntimeErrors, whose texts contain paths."""
        if isinstance(error, EmbedError):
            return error
        if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate" in str(error):
            return OutOfMemory("the device has no room for a batch")
        return ExecutionFailed(f"a batch failed: {type(error).__name__}")

    def rest(self) -> None:
        """Return freed memory to the system."""
        return_free_memory()

    def close(self) -> None:
        """Free the model's memory."""
        self._states = self._steps = None


def load(
    settings: ModelSettings,
    files: ModelFiles,
    device: str,
    max_batch_tokens: int,
    max_batch_sentences: int,
    unseen: int | None,
) -> OpenVinoExecutor:
    """The executor; it converts the model if its graphs are not in the cache. unseen: as in `TransformersExecutor`.

    Raises OpenVinoUnavailable if it can't serve, and ModelError if the model's files are wrong.
    """
    if reason := reason_against(settings, files, device):
        raise OpenVinoUnavailable(reason)
    int8 = settings.vllm.get("quantization") == INT8
    announce("importing OpenVINO")
    with imports_that_stay():
        import openvino
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if int8 and not settings.vllm.get("dtype"):
        # The type of the products that stay unquantized.
        dtype = "bfloat16" if "BF16" in capabilities else "float32"
    else:
        dtype = asked_dtype(settings, read_object(files.transformer / "config.json"), device, "openvino")
    if dtype == "bfloat16" and "BF16" not in capabilities:
        raise OpenVinoUnavailable("this processor does not multiply bfloat16 (AMX or AVX512-BF16)")
    if dtype not in _PRECISIONS:
        raise OpenVinoUnavailable(f"it has no {dtype}")
    quality, group = None, 0
    with contextlib.ExitStack() as stack:
        folder = states_folder = stack.enter_context(graphs_of(settings, files))
        if int8:
            processor = ",".join(sorted(capabilities))
            states_folder = stack.enter_context(quantized_of(settings, files, dtype, processor, folder))
            quality, group = _reached(states_folder, dtype)
        announce("loading the weights")
        states = core.compile_model(states_folder / STATES, "CPU", options_of(dtype, group))
        steps = core.compile_model(folder / STEPS, "CPU", options_of("float32")) if files.steps else None
    heads = None
    if files.token_outputs.per_token:
        # Imported here: it imports torch.
        from tritonembed_engine.executors.building import heads_of

        heads = heads_of(files)
    executor = executor_of(states, steps, files, dtype, max_batch_tokens, max_batch_sentences, heads, unseen)
    executor.quality = quality
    return executor


def executor_of(
    states: Any,
    steps: Any | None,
    files: ModelFiles,
    dtype: str,
    max_batch_tokens: int,
    max_batch_sentences: int,
    heads: "TokenHeads | None" = None,
    unseen: int | None = None,
) -> OpenVinoExecutor:
    """The executor of compiled graphs."""
    padding, types = filler_id(files), files.has_token_types
    return OpenVinoExecutor(
        states, steps, files.pooling, dtype, max_batch_tokens, max_batch_sentences, padding, heads, types, unseen
    )


def _reached(folder: Path, dtype: str) -> tuple[float, int]:
    """Log the quality of a quantized model, and return it with the number of channels that share a scale."""
    found = read_object(folder / QUALITY)
    kept = [name.removeprefix("__module.model.").partition("/")[0] for name in found["kept"]]
    logger.warning(
        "int8: %d of %d products, and %.4f of the ten nearest of the calibration texts are those of float32%s",
        len(found["quantized"]),
        len(found["quantized"]) + len(kept),
        found["quality"],
        f"; in {dtype}: {', '.join(kept)}" if kept else "",
    )
    return float(found["quality"]), int(found["group"])


def reason_against(settings: ModelSettings, files: ModelFiles, device: str) -> str | None:
    """Why the executor can't serve a model, as far as its files and settings show; None if it can."""
    if device != "cpu":
        return "it is for CPUs"
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed (pip install 'tritonembed[openvino]')"
    if files.model_type not in IN_OPENVINO or files.is_causal:
        return f"{files.model_type} models are not among the encoders that it converts"
    if read_object(files.transformer / "config.json").get("quantization_config"):
        return "the model has quantized weights"
    for argument, value in settings.vllm.items():
        if (argument, value) == ("quantization", INT8):
            continue
        if argument not in _FOLLOWED and not (value in (None, False, {}) or (argument in _PARALLEL and value == 1)):
            return f"{argument} is an engine argument of vLLM"
    return None


def options_of(dtype: str, group: int = 0) -> dict[str, Any]:
    """OpenVINO's options for a graph. group: input channels that share a scale, if products are in int8."""
    options: dict[str, Any] = {
        # Without this, OpenVINO takes bfloat16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        # Replicas, tokenizers and the server share the cores.
        "ENABLE_CPU_PINNING": False,
        # The cache of products that are prepared for a shape. OpenVINO's default of 5,000 takes 150 MB.
        "CPU_RUNTIME_CACHE_CAPACITY": 1000,
    }
    if group:
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(threads):
        options["INFERENCE_NUM_THREADS"] = int(threads)
    return options
