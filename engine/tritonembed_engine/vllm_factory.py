"""The direct executor or the scheduler, over a model that vLLM loads. Imports torch: `factory` imports it if needed."""

import gc
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritonembed_engine.distance import measure_of
from tritonembed_engine.errors import DeviceLost, ModelError
from tritonembed_engine.executors.agreement import (
    LONGEST,
    Disagreement,
    VllmVectors,
    check_agreement,
    compute_vllm_vectors,
)
from tritonembed_engine.executors.base import Executor, explain
from tritonembed_engine.executors.building import (
    build_direct_of_rank,
    build_direct_on_cpu,
    build_direct_on_gpu,
    build_scheduler,
    without_kernels,
)
from tritonembed_engine.executors.loading import has_small_cache, load_vllm, longest_in_vllm, tries_direct
from tritonembed_engine.executors.pooling import reads_rows
from tritonembed_engine.executors.ranks import Ranks
from tritonembed_engine.executors.vllm_internals import dtype_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.quantization import is_quantized
from tritonembed_engine.reference.cases import Reference
from tritonembed_engine.reference.check import Gate, Wrong, let_through
from tritonembed_engine.settings import EngineSettings, ModelSettings
from tritonembed_engine.stub.process import announce

if TYPE_CHECKING:
    from vllm import LLM

    from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor
    from tritonembed_engine.executors.direct import DirectExecutor
    from tritonembed_engine.executors.vllm_internals import OpenModel

NO_TYPES = "vLLM's scheduler does not mark the second text of a pair (token types)"

logger = logging.getLogger(__name__)


def vllm_executor(
    settings: ModelSettings, files: ModelFiles, device: str, reference: Reference | None, ranks: Ranks | None
) -> Executor:
    """The direct executor or the scheduler, over a model that vLLM loads. ranks: the replica's other processes."""
    longest = longest_in_vllm(settings, files)
    llm = load_vllm(settings, files, device, longest, None if ranks is None else 0)
    gate = Gate(reference, dtype_of(llm), is_quantized(settings, files))
    scheduler: Executor = build_scheduler(llm, settings, files, device)
    if ranks is not None:
        scheduler = ranks.mirror(scheduler)
    if not tries_direct(settings):
        if files.has_token_types:
            raise ModelError(f"{files.name}: {NO_TYPES}")
        return let_through(scheduler, gate, files.name, [])
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
    return let_through(scheduler, gate, files.name, [f"direct executor: {found.reason}"])


@dataclass(frozen=True)
class _Declined:
    """The direct executor does not serve. spoiled: nor can vLLM in its loaded form."""

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
            # Only now, because ranks can't load the model again for the scheduler.
            ranks.send("free_cache")
            model.free_cache()
        return executor
    except (DirectUnavailable, Disagreement, Wrong) as problem:
        return _Declined(str(problem), spoiled)
    except Exception as error:
        return _Declined(_failure("the direct executor", error), spoiled)


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

    Raises the error if it fails, and then leaves the model as vLLM made it.
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
    without, every_token = without_kernels(engine), without_kernels(engine, "pooled_rows")
    steps = [(every_token, "vLLM's kernels serve, not ours")]
    if engine.kernels.pooled_rows and reads_rows(files.pooling):
        steps.insert(0, (engine, "the last layer computes every token"))
    for chosen, consequence in steps:
        if chosen.kernels == without.kernels:
            break
        try:
            return on_gpu(chosen)
        except (Disagreement, Wrong) as problem:
            logger.warning("%s: %s", consequence, problem)
        except Exception as error:
            logger.warning("%s: %s", consequence, _failure("a kernel", error))
    return on_gpu(without)


def _failure(what: str, error: Exception) -> str:
    """The failure in one line; the log has the rest. Raises the error if the device is lost: nothing runs on it."""
    if isinstance(explain(error), DeviceLost):
        raise error
    logger.warning("%s failed", what, exc_info=error)
    return f"{what} failed ({type(error).__name__})"
