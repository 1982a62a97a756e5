"""From model.json to a running engine: loads vLLM and chooses the executor."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritonembed_engine.distance import measure_of
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import DeviceLost, ModelError
from tritonembed_engine.executors.agreement import (
    LONGEST,
    Disagreement,
    VllmVectors,
    check_agreement,
    compute_vllm_vectors,
)
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.building import (
    build_direct_of_rank,
    build_direct_on_cpu,
    build_direct_on_gpu,
    build_scheduler,
    heads_of,
    without_kernels,
)
from tritonembed_engine.executors.faults import explain
from tritonembed_engine.executors.loading import (
    SENTENCES_PER_BATCH,
    has_small_cache,
    load_vllm,
    longest_in_vllm,
    max_batch_tokens,
    tries_direct,
)
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.ranks import Ranks, ranks_of
from tritonembed_engine.executors.vllm_internals import dtype_of
from tritonembed_engine.model.architecture import reason_against_cpu
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.static import read_table
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.reference.cases import Reference
from tritonembed_engine.reference.check import Gate, Wrong
from tritonembed_engine.reference.store import find_reference, read_reference
from tritonembed_engine.request import BatchReport
from tritonembed_engine.settings import EngineSettings, ModelSettings
from tritonembed_engine.stub.process import announce
from tritonembed_engine.tokenizing.loading import expansion_id, own_tokenizer

if TYPE_CHECKING:
    from vllm import LLM

    from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor
    from tritonembed_engine.executors.direct import DirectExecutor
    from tritonembed_engine.executors.vllm_internals import OpenModel

NO_TYPES = "vLLM's scheduler does not mark the second text of a pair (token types)"

logger = logging.getLogger(__name__)


def create_engine(
    settings: ModelSettings,
    files: ModelFiles,
    device: str,
    on_batch: Callable[[BatchReport], None] | None = None,
    on_death: Callable[[], None] | None = None,
) -> EmbeddingEngine:
    """An engine that is ready to serve. device: "cpu" or "cuda". Raises ModelError."""
    executor = create_executor(settings, files, device)
    return EmbeddingEngine(
        executor,
        settings.engine.max_waiting_sentences,
        max_waiting_requests=settings.engine.max_waiting_requests,
        on_batch=on_batch,
        on_death=on_death,
    )


def create_executor(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    """The direct executor if it serves the model and its vectors are right; else the scheduler (reason in the log).

    The transformers executor serves what vLLM does not have, and any encoder that it knows if model.json asks for it;
    the static executor serves static embeddings.
    Vectors are right if they agree with the reference (`reference/`) and, in every shape of a batch, with vLLM's.
    Raises ModelError if neither executor's vectors are right, or if model.json asks for `direct` and it can't serve.
    """
    executor = _create(settings, files, device)
    if settings.engine.deterministic:
        executor.max_batch_sentences = 1
    return executor


def _create(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    if device == "cpu" and (reason := reason_against_cpu(read_object(files.transformer / "config.json"))):
        raise ModelError(f"{files.name} can't be served on a CPU: {reason}")
    by_transformers = _serves_in_transformers(settings, files)
    for key in files.unknown:
        logger.warning("%s has no effect", key)
    reference = choose_reference(settings, files)
    if reference is not None and reference.unknown:
        logger.warning("config.json: %s have no effect", ", ".join(reference.unknown))
    if files.is_static:
        return _static_executor(settings, files, reference)
    if by_transformers:
        return _transformers_executor(settings, files, device, reference)
    ranks = Ranks(settings, files, device) if ranks_of(settings) > 1 else None
    try:
        return _vllm_executor(settings, files, device, reference, ranks)
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def _vllm_executor(
    settings: ModelSettings, files: ModelFiles, device: str, reference: Reference | None, ranks: Ranks | None
) -> Executor:
    """The direct executor or the scheduler, over a model that vLLM loads. ranks: the replica's other processes."""
    longest = longest_in_vllm(settings, files)
    llm = load_vllm(settings, files, device, longest, None if ranks is None else 0)
    gate = Gate(reference, dtype_of(llm), _is_quantized(settings, files))
    scheduler: Executor = build_scheduler(llm, settings, files, device)
    if ranks is not None:
        scheduler = ranks.mirror(scheduler)
    if not tries_direct(settings):
        if files.has_token_types:
            raise ModelError(f"{files.name}: {NO_TYPES}")
        return _let_through(scheduler, gate, files, [])
    found = _try_direct(llm, longest, settings, files, device, scheduler, gate, ranks)
    if not isinstance(found, _Declined):
        return found
    if settings.engine.executor == "direct":
        raise ModelError(f"the direct executor can't serve this model: {found.reason}")
    if files.has_token_types:
        raise ModelError(f"{files.name}: {NO_TYPES}, and the direct executor can't serve: {found.reason}")
    logger.warning("the scheduler executor serves: %s", found.reason)
    if found.spoiled or longest < files.max_length or has_small_cache(settings, files, device):
        # vLLM's cache is freed, or too small for the model's longest text.
        scheduler.close()
        del llm
        gc.collect()
        scheduler = build_scheduler(load_vllm(settings, files, device), settings, files, device)
    return _let_through(scheduler, gate, files, [f"direct executor: {found.reason}"])


@dataclass(frozen=True)
class _Declined:
    """The direct executor does not serve. spoiled: vLLM as it was loaded can't serve either."""

    reason: str
    spoiled: bool = False


def _try_direct(
    llm: "LLM",
    longest: int,
    settings: ModelSettings,
    files: ModelFiles,
    device: str,
    scheduler: Executor,
    gate: Gate,
    ranks: Ranks | None,
) -> Executor | _Declined:
    """A direct executor whose vectors are right, or the reason against it. longest: tokens of a text in vLLM."""
    # Imported here: the direct path touches vLLM's internals, which may have moved.
    from tritonembed_engine.executors.vllm_internals import DirectUnavailable, open_model

    spoiled = False
    try:
        model = open_model(llm)
        if ranks is not None:
            ranks.send("open_model")
        announce("computing vLLM's vectors, to compare with")
        # Before the direct executor is made: it puts its kernels into the same model.
        most = min(longest, LONGEST[device])
        measure = measure_of(files.classifier is not None)
        expected = compute_vllm_vectors(scheduler, files.vocab_size, most, model.quantized, files.padding_id, measure)
        if ranks is None:
            spoiled = model.causal
            model.free_cache()
        executor = _direct_executor(model, settings.engine, files, scheduler, expected, gate, ranks)
        if ranks is not None:
            # Not before: ranks can't load the model again for the scheduler.
            ranks.send("free_cache")
            model.free_cache()
        return executor
    except (DirectUnavailable, Disagreement, Wrong) as problem:
        return _Declined(str(problem), spoiled)
    except Exception as error:
        return _Declined(_failure("the direct executor", error), spoiled)


def _serves_in_transformers(settings: ModelSettings, files: ModelFiles) -> bool:
    """Whether the transformers executor serves. Raises ModelError if another is asked for and vLLM can't."""
    asked, reason = settings.engine.executor, files.reason_against_vllm
    if asked != "auto" and reason and (asked != "transformers" or files.is_static):
        raise ModelError(f"{files.name}: the {asked} executor can't serve this model: {reason}")
    return asked == "transformers" or bool(reason)


def _static_executor(settings: ModelSettings, files: ModelFiles, reference: Reference | None) -> Executor:
    """The static executor, if its vectors are right. Else raises ModelError."""
    from tritonembed_engine.executors import static, transformers_executor

    transformers_executor.refuse_arguments(settings, files, "static")
    announce("loading the weights")
    try:
        table = read_table(files.transformer)
    except ModelError as error:
        raise ModelError(f"{files.name}: {error}") from None
    tokens = settings.engine.max_batch_tokens or static.TOKENS_PER_BATCH
    executor = static.StaticExecutor(table, Steps(files.steps), tokens, SENTENCES_PER_BATCH)
    announce("comparing the vectors with the reference")
    return _let_through(executor, Gate(reference, "float32", False), files, [])


def _transformers_executor(
    settings: ModelSettings, files: ModelFiles, device: str, reference: Reference | None
) -> Executor:
    """The transformers executor, if its vectors are right. Else raises ModelError."""
    # Imported here: it needs nothing of vLLM, and the other executors nothing of it.
    from tritonembed_engine.executors import transformers_executor as own

    model = own.load_encoder(settings, files, device)
    executor = own.TransformersExecutor(
        model,
        Pooler(files.pooling, Steps(files.steps, device)),
        max_batch_tokens(settings, files, device),
        SENTENCES_PER_BATCH,
        own.padding_id(files),
        own.GROUPING[device],
        heads_of(files, device),
        files.has_token_types,
        unseen_id(files),
    )
    announce("comparing the vectors with the reference")
    return _let_through(executor, Gate(reference, executor.dtype, False, padded=True), files, [])


def unseen_id(files: ModelFiles) -> int | None:
    """The id that expands queries, if the other tokens don't see it; else None."""
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
    if read_object(files.transformer / "config.json").get("quantization_config"):
        raise ModelError(
            f"{files.name} has quantized weights, for which no reference can be computed; give sentence-transformers'"
            " vectors (--reference FILE), or serve without (--no-reference)"
        )
    return find_reference(settings, files)


def _is_quantized(settings: ModelSettings, files: ModelFiles) -> bool:
    stored = read_object(files.transformer / "config.json").get("quantization_config")
    return bool(settings.vllm.get("quantization") or stored)


def _let_through(executor: Executor, gate: Gate, files: ModelFiles, tried: list[str]) -> Executor:
    """The executor, if its vectors are right. Else raises ModelError, which names everything that was tried."""
    try:
        gate.check(executor)
    except Wrong as problem:
        ways = "; ".join([*tried, f"{executor.name} executor: {problem}"])
        raise ModelError(f"{files.name} is not served, because its vectors would be wrong: {ways}") from None
    return executor


def _direct_executor(
    model: "OpenModel",
    engine: EngineSettings,
    files: ModelFiles,
    scheduler: Executor,
    expected: VllmVectors,
    gate: Gate,
    ranks: Ranks | None,
) -> Executor:
    """A direct executor that agrees with vLLM's answers and passes the gate.

    Raises the error of whatever is wrong, and then leaves the model as vLLM made it.
    """
    tokens = scheduler.max_batch_tokens

    def checked(built: "DirectExecutor | CudaDirectExecutor") -> Executor:
        executor = built if ranks is None else ranks.mirror(built)
        try:
            announce("comparing the vectors with vLLM's and with the reference")
            check_agreement(executor, expected, built.captured, built.uncaptured)
            gate.check(executor)
        except BaseException:
            if ranks is not None:
                ranks.send("close", built.name)
            built.close()
            raise
        return executor

    def on_gpu(settings: EngineSettings) -> Executor:
        announce("compiling kernels")
        return checked(build_direct_on_gpu(model, settings, files, scheduler.dimensions, tokens))

    if ranks is not None:
        ranks.send("build_direct")
        return checked(build_direct_of_rank(model, engine, files, scheduler))
    if model.device.type == "cpu":
        return checked(build_direct_on_cpu(model, files, tokens))
    without = without_kernels(engine)
    if engine.kernels != without.kernels:
        try:
            return on_gpu(engine)
        except (Disagreement, Wrong) as problem:
            logger.warning("vLLM's kernels serve, not ours: %s", problem)
        except Exception as error:
            logger.warning("vLLM's kernels serve, not ours: %s", _failure("a kernel", error))
    return on_gpu(without)


def _failure(what: str, error: Exception) -> str:
    """The failure in one line; the log has the rest. Raises the error if the device is lost: nothing runs on it."""
    if isinstance(explain(error), DeviceLost):
        raise error
    logger.warning("%s failed", what, exc_info=error)
    return f"{what} failed ({type(error).__name__})"
