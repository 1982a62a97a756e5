"""From model.json to a running engine: loads the model and chooses the executor.

torch and vLLM are imported only for the executors that need them, because they take most of a start and half of its
memory.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from tritonembed_engine.cache import VectorCache
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.loading import (
    INT8,
    SENTENCES_PER_BATCH,
    filler_id,
    max_batch_tokens,
    reason_against_bfloat16,
    reason_against_int8,
    refuse_arguments,
)
from tritonembed_engine.executors.ranks import Ranks, ranks_of
from tritonembed_engine.model.adapters import NO_ADAPTERS, AdapterFiles, read_pairs
from tritonembed_engine.model.architecture import reason_against_cpu
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.reference.cases import Reference
from tritonembed_engine.reference.check import Gate, Wrong, let_through
from tritonembed_engine.reference.store import find_reference, read_reference
from tritonembed_engine.request import BatchReport
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.process import announce
from tritonembed_engine.tokenizing.loading import expansion_id, own_tokenizer

logger = logging.getLogger(__name__)


def create_engine(
    settings: ModelSettings,
    files: ModelFiles,
    device: str,
    on_batch: Callable[[BatchReport], None] | None = None,
    on_death: Callable[[], None] | None = None,
    adapters: Mapping[str, AdapterFiles] = NO_ADAPTERS,
) -> EmbeddingEngine:
    """An engine that is ready to serve. device: "cpu" or "cuda". adapters: of `read_adapters`. Raises ModelError."""
    executor = create_executor(settings, files, device)
    add_adapters(executor, adapters, settings)
    return EmbeddingEngine(
        executor,
        settings.engine.max_waiting_sentences,
        max_waiting_requests=settings.engine.max_waiting_requests,
        on_batch=on_batch,
        on_death=on_death,
        cache=VectorCache(settings.engine.cache_bytes) if settings.engine.cache_bytes else None,
    )


def create_executor(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    """The executor that serves the model. Each executor that can't serve logs its reason.

    On a CPU that is the openvino executor if its package is installed; else, and on a GPU, the direct executor, else
    the scheduler. The transformers executor serves what vLLM does not have, and any encoder that it knows if model.json
    asks for it; the static executor serves static embeddings.
    Vectors are right if they agree with the reference (`reference/`) and, if vLLM loaded the model, in every shape of a
    batch with vLLM's. Raises ModelError if no executor's vectors are right, or if the executor that model.json asks for
    can't serve.
    """
    executor = _create(settings, files, device)
    if settings.engine.deterministic:
        executor.max_batch_sentences = 1
    return executor


def add_adapters(executor: Executor, adapters: Mapping[str, AdapterFiles], settings: ModelSettings) -> None:
    """Load the adapters into an executor, and check the vectors of each. Raises ModelError."""
    if adapters:
        from tritonembed_engine.executors.adapters import WithAdapter
    for name, adapter in adapters.items():
        own = getattr(executor, "adapters", None)
        if own is None or settings.vllm.get("quantization") or _stored_quantization(adapter.files):
            what = f"the {executor.name} executor" if own is None else "a quantized model"
            raise ModelError(f"adapter {name}: {what} serves none, only the direct and the transformers executor do")
        announce(f"loading the adapter {name}")
        own.add(name, read_pairs(adapter))
        reference = None
        if settings.engine.reference == "auto":
            reference = find_reference(settings, adapter.files, adapter)
        else:
            logger.warning("the vectors of the adapter %s are not compared with a reference", name)
        gate = Gate(reference, executor.dtype, False, padded=executor.name == "transformers")
        let_through(WithAdapter(executor, name), gate, adapter.files.name, [])


def _stored_quantization(files: ModelFiles) -> object:
    return read_object(files.transformer / "config.json").get("quantization_config")


def _create(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    if device == "cpu" and (reason := reason_against_cpu(read_object(files.transformer / "config.json"))):
        raise ModelError(f"{files.name} can't be served on a CPU: {reason}")
    if device == "cpu" and (reason := reason_against_bfloat16(settings)):
        raise ModelError(f"{files.name}: {reason}")
    if reason := reason_against_int8(settings, files, device):
        raise ModelError(f"{files.name}: {reason}")
    if settings.engine.calibration and settings.vllm.get("quantization") != INT8:
        logger.warning("the calibration texts have no effect without --quantization int8")
    by_transformers = _serves_in_transformers(settings, files)
    for key in files.unknown:
        logger.warning("%s has no effect", key)
    reference = choose_reference(settings, files)
    if reference is not None and reference.unknown:
        logger.warning("config.json: %s have no effect", ", ".join(reference.unknown))
    if files.is_static:
        return _static_executor(settings, files, reference)
    # The openvino executor's graph has no place for adapters.
    is_tried = settings.engine.executor == "auto" and device == "cpu" and not settings.adapters
    if settings.engine.executor == "openvino" or is_tried:
        found = _openvino_executor(settings, files, device, reference)
        if not isinstance(found, str):
            return found
        if settings.engine.executor == "openvino" or settings.vllm.get("quantization") == INT8:
            raise ModelError(f"{files.name}: the openvino executor can't serve this model: {found}")
        logger.warning("the openvino executor does not serve: %s", found)
    if by_transformers:
        return _transformers_executor(settings, files, device, reference)
    # Imported here: it imports torch.
    from tritonembed_engine.vllm_factory import vllm_executor

    ranks = Ranks(settings, files, device) if ranks_of(settings) > 1 else None
    try:
        return vllm_executor(settings, files, device, reference, ranks)
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def _serves_in_transformers(settings: ModelSettings, files: ModelFiles) -> bool:
    """Whether the transformers executor serves. Raises ModelError if another is asked for and vLLM can't."""
    asked, reason = settings.engine.executor, files.reason_against_vllm
    if asked != "auto" and reason and (asked not in ("openvino", "transformers") or files.is_static):
        raise ModelError(f"{files.name}: the {asked} executor can't serve this model: {reason}")
    return asked == "transformers" or bool(reason)


def _static_executor(settings: ModelSettings, files: ModelFiles, reference: Reference | None) -> Executor:
    """The static executor, if its vectors are right. Else raises ModelError."""
    from tritonembed_engine.executors import static
    from tritonembed_engine.model.static import read_table
    from tritonembed_engine.model.steps import Steps

    refuse_arguments(settings, files, "static")
    announce("loading the weights")
    try:
        table = read_table(files.transformer)
    except ModelError as error:
        raise ModelError(f"{files.name}: {error}") from None
    tokens = settings.engine.max_batch_tokens or static.TOKENS_PER_BATCH
    executor = static.StaticExecutor(table, Steps(files.steps), tokens, SENTENCES_PER_BATCH)
    announce("comparing the vectors with the reference")
    return let_through(executor, Gate(reference, "float32", False), files.name, [])


def _openvino_executor(
    settings: ModelSettings, files: ModelFiles, device: str, reference: Reference | None
) -> Executor | str:
    """The openvino executor, if its vectors are right; else the reason against it."""
    from tritonembed_engine.executors import openvino_executor as own
    from tritonembed_engine.executors.openvino_graphs import OpenVinoUnavailable

    try:
        executor = own.load(
            settings, files, device, max_batch_tokens(settings, files, device), SENTENCES_PER_BATCH, unseen_id(files)
        )
        announce("comparing the vectors with the reference")
        Gate(reference, executor.dtype, settings.vllm.get("quantization") == INT8, padded=True).check(executor)
    except (OpenVinoUnavailable, Wrong) as problem:
        return str(problem)
    except ModelError:
        raise
    except Exception as error:
        logger.warning("the openvino executor failed", exc_info=error)
        return f"it failed ({type(error).__name__})"
    return executor


def _transformers_executor(
    settings: ModelSettings, files: ModelFiles, device: str, reference: Reference | None
) -> Executor:
    """The transformers executor, if its vectors are right. Else raises ModelError."""
    # Imported here: it does not need vLLM, and the other executors do not need it.
    from tritonembed_engine.executors import transformers_executor as own
    from tritonembed_engine.executors.building import heads_of
    from tritonembed_engine.executors.pooling import Pooler
    from tritonembed_engine.model.steps import Steps

    model = own.load_encoder(settings, files, device)
    executor = own.TransformersExecutor(
        model,
        Pooler(files.pooling, Steps(files.steps, device)),
        max_batch_tokens(settings, files, device),
        SENTENCES_PER_BATCH,
        filler_id(files),
        own.GROUPING[device],
        heads_of(files, device),
        files.has_token_types,
        unseen_id(files),
    )
    announce("comparing the vectors with the reference")
    return let_through(executor, Gate(reference, executor.dtype, False, padded=True), files.name, [])


def unseen_id(files: ModelFiles) -> int | None:
    """The id that expands queries, if the other tokens don't attend to it; else None."""
    output = files.token_outputs.multi_vector
    if output is None or output.expansion is None or output.expansion.attend:
        return None
    return expansion_id(own_tokenizer(files), output.expansion.token)


def choose_reference(settings: ModelSettings, files: ModelFiles) -> Reference | None:
    """The reference that model.json asks for; None for `off`. Raises ModelError."""
    wanted = settings.engine.reference
    if wanted == "off":
        logger.warning("the vectors are not compared with a reference (reference: off)")
        return None
    if wanted != "auto":
        return read_reference(Path(wanted), files)
    if _stored_quantization(files):
        raise ModelError(
            f"{files.name} has quantized weights, for which no reference can be computed; give sentence-transformers'"
            " vectors (--reference FILE), or serve without (--no-reference)"
        )
    return find_reference(settings, files)
