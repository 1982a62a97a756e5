"""From model.json to a running engine: loads vLLM and chooses the executor."""

import logging
from collections.abc import Callable

from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.agreement import Disagreement, check_agreement, make_reference
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.scheduler import SchedulerExecutor
from tritonembed_engine.jobs import BatchReport
from tritonembed_engine.loading import SENTENCES_PER_BATCH, load_vllm, max_batch_tokens
from tritonembed_engine.model_files import ModelFiles
from tritonembed_engine.settings import ModelSettings

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
    """The direct executor where it serves the model and agrees with vLLM; else the scheduler, and the log says why.

    Raises ModelError where model.json insists on `direct` and it can't be had.
    """
    llm = load_vllm(settings, files, device)
    tokens = max_batch_tokens(settings, files, device)
    scheduler = SchedulerExecutor(llm, tokens, SENTENCES_PER_BATCH)
    if settings.engine.executor == "scheduler":
        return scheduler
    # Imported here: the direct path touches vLLM's internals, which may have moved.
    from tritonembed_engine.executors.vllm_internals import DirectUnavailable, open_model

    direct: Executor | None = None
    try:
        model = open_model(llm)
        # Before the direct executor is made: its kernels go into the same model.
        reference = make_reference(scheduler, files.vocab_size, files.max_length, model.quantized)
        if device == "cuda":
            from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor

            cuda = CudaDirectExecutor(
                model, settings.engine, scheduler.dimensions, files.max_length, tokens, SENTENCES_PER_BATCH
            )
            direct = cuda
            captured = [graph.bucket for graph in cuda.graphs]
        else:
            from tritonembed_engine.executors.direct import DirectExecutor

            direct, captured = DirectExecutor(model, tokens, SENTENCES_PER_BATCH), []
        check_agreement(direct, reference, captured)
    except (DirectUnavailable, Disagreement) as problem:
        if direct is not None:
            direct.close()
        if settings.engine.executor == "direct":
            raise ModelError(f"the direct executor can't serve this model: {problem}") from None
        logger.warning("the scheduler executor serves: %s", problem)
        return scheduler
    return direct
