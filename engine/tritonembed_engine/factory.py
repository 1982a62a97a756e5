"""From model.json to a running engine: loads vLLM and chooses the executor."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import DeviceLost, ModelError
from tritonembed_engine.executors.agreement import Disagreement, Reference, check_agreement, make_reference
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.faults import explain
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.scheduler import SchedulerExecutor
from tritonembed_engine.executors.vllm_internals import dtype_of
from tritonembed_engine.jobs import BatchReport
from tritonembed_engine.loading import SENTENCES_PER_BATCH, load_vllm, max_batch_tokens
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.reference.cases import Reference as HeldAgainst
from tritonembed_engine.reference.check import Gate, Wrong
from tritonembed_engine.reference.given import read_reference
from tritonembed_engine.reference.store import find_reference
from tritonembed_engine.settings import EngineSettings, KernelSettings, ModelSettings

if TYPE_CHECKING:
    from tritonembed_engine.executors.vllm_internals import OpenModel

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
    """The direct executor where it serves the model and its vectors are right; else the scheduler; the log says why.

    Right are those that agree with the reference (`reference/`) and, in every shape of a batch, with vLLM's. Raises
    ModelError where neither executor's are, or where model.json insists on `direct` and it can't be had.
    """
    executor = _create(settings, files, device)
    if settings.engine.deterministic:
        executor.max_batch_sentences = 1
    return executor


def _create(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    for key in files.unknown:
        logger.warning("%s has no effect", key)
    held_against = find_held_against(settings, files)
    if held_against is not None and held_against.unknown:
        logger.warning("config.json: %s have no effect", ", ".join(held_against.unknown))
    llm = load_vllm(settings, files, device)
    gate = Gate(held_against, dtype_of(llm), _is_quantized(settings, files))
    tokens = max_batch_tokens(settings, files, device)
    # The steps' weights are read before anything else runs: a fault in them stops the start, not the direct executor.
    scheduler = SchedulerExecutor(
        llm, tokens, SENTENCES_PER_BATCH, files.pooling, Steps(files.steps), files.padding_id, files.include_prompt
    )
    if settings.engine.executor == "scheduler":
        return _let_through(scheduler, gate, files, [])
    # Imported here: the direct path touches vLLM's internals, which may have moved.
    from tritonembed_engine.executors.vllm_internals import DirectUnavailable, open_model

    try:
        model = open_model(llm)
        # Before the direct executor is made: its kernels go into the same model.
        reference = make_reference(scheduler, files.vocab_size, files.max_length, model.quantized, files.padding_id)
        return _direct_executor(model, settings.engine, files, device, scheduler, reference, gate)
    except (DirectUnavailable, Disagreement, Wrong) as problem:
        reason = str(problem)
    except Exception as error:
        reason = _failure("the direct executor", error)
    if settings.engine.executor == "direct":
        raise ModelError(f"the direct executor can't serve this model: {reason}")
    logger.warning("the scheduler executor serves: %s", reason)
    return _let_through(scheduler, gate, files, [f"direct executor: {reason}"])


def find_held_against(settings: ModelSettings, files: ModelFiles) -> HeldAgainst | None:
    """The reference that model.json asks for; None for `off`. Raises ModelError."""
    wanted = settings.engine.reference
    if wanted == "off":
        logger.warning("the vectors are not held against a reference (reference: off)")
        return None
    if wanted != "auto":
        return read_reference(Path(wanted), files)
    if read_object(files.transformer / "config.json").get("quantization_config"):
        raise ModelError(
            f"{files.name} has quantized weights, of which no reference is made; give sentence-transformers' vectors"
            " (--reference FILE), or serve without (--no-reference)"
        )
    return find_reference(settings, files)


def _is_quantized(settings: ModelSettings, files: ModelFiles) -> bool:
    stored = read_object(files.transformer / "config.json").get("quantization_config")
    return bool(settings.vllm.get("quantization") or stored)


def _let_through(executor: SchedulerExecutor, gate: Gate, files: ModelFiles, tried: list[str]) -> Executor:
    """The last way to serve; raises ModelError, with all that was tried, where its vectors are wrong too."""
    try:
        gate.check(executor)
    except Wrong as problem:
        ways = "; ".join([*tried, f"scheduler executor: {problem}"])
        raise ModelError(f"{files.name} is not served, because its vectors would be wrong: {ways}") from None
    return executor


def _direct_executor(
    model: "OpenModel",
    engine: EngineSettings,
    files: ModelFiles,
    device: str,
    scheduler: SchedulerExecutor,
    reference: Reference,
    gate: Gate,
) -> Executor:
    """Made, and held against vLLM's answers and the gate's; raises whatever is wrong, the model as vLLM made it."""
    tokens = scheduler.max_batch_tokens
    if device == "cpu":
        from tritonembed_engine.executors.direct import DirectExecutor

        pooler = Pooler(files.pooling, Steps(files.steps))
        on_cpu = DirectExecutor(model, pooler, tokens, SENTENCES_PER_BATCH, files.padding_id)
        check_agreement(on_cpu, reference, [])
        gate.check(on_cpu)
        return on_cpu
    from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor

    def make(settings: EngineSettings) -> CudaDirectExecutor:
        executor = CudaDirectExecutor(
            model,
            settings,
            scheduler.dimensions,
            files.max_length,
            tokens,
            SENTENCES_PER_BATCH,
            files.pooling,
            Steps(files.steps, model.device),
            files.padding_id,
        )
        try:
            check_agreement(executor, reference, [graph.bucket for graph in executor.graphs], [executor.uncaptured])
            gate.check(executor)
        except BaseException:
            executor.close()
            raise
        return executor

    without = KernelSettings(**dict.fromkeys(KernelSettings.model_fields, False))
    if engine.kernels != without:
        try:
            return make(engine)
        except (Disagreement, Wrong) as problem:
            logger.warning("vLLM's kernels serve, not ours: %s", problem)
        except Exception as error:
            logger.warning("vLLM's kernels serve, not ours: %s", _failure("one", error))
    return make(engine.model_copy(update={"kernels": without}))


def _failure(what: str, error: Exception) -> str:
    """In one line; the log has the rest. Raises the error where the device is lost: nothing else would run on it."""
    if isinstance(explain(error), DeviceLost):
        raise error
    logger.warning("%s failed", what, exc_info=error)
    return f"{what} failed ({type(error).__name__})"
