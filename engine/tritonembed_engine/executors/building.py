"""Executors over a model that vLLM has loaded."""

from typing import TYPE_CHECKING

from tritonembed_engine.executors.loading import SENTENCES_PER_BATCH, max_batch_tokens
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.scheduler import SchedulerExecutor
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.settings import EngineSettings, KernelSettings, ModelSettings

if TYPE_CHECKING:
    import torch
    from vllm import LLM

    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor
    from tritonembed_engine.executors.direct import DirectExecutor
    from tritonembed_engine.executors.vllm_internals import OpenModel
    from tritonembed_engine.model.files import ModelFiles


def build_scheduler(llm: "LLM", settings: ModelSettings, files: "ModelFiles", device: str) -> SchedulerExecutor:
    """The scheduler executor. device: "cpu" or "cuda"."""
    # The steps' weights are read here, so that a fault in them stops the start, not only the direct executor.
    steps = Steps(files.steps)
    tokens = max_batch_tokens(settings, files, device)
    return SchedulerExecutor(
        llm, tokens, SENTENCES_PER_BATCH, files.pooling, steps, files.padding_id, files.include_prompt, heads_of(files)
    )


def heads_of(
    files: "ModelFiles",
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    *,
    max_pool: bool = False,
) -> TokenHeads:
    """The model's outputs per token. dtype: of the products; None: float32. max_pool: see `TokenHeads`.

    Raises ModelError if their weights can't be read.
    """
    return TokenHeads(files.token_outputs, files.hidden_size, device, files.transformer, dtype, max_pool=max_pool)


def build_direct_on_cpu(model: "OpenModel", files: "ModelFiles", max_batch_tokens: int) -> "DirectExecutor":
    """The direct executor on a CPU."""
    # Imported here: it touches vLLM's internals, which may have moved.
    from tritonembed_engine.executors.direct import DirectExecutor

    pooler = Pooler(files.pooling, Steps(files.steps))
    return DirectExecutor(model, pooler, max_batch_tokens, SENTENCES_PER_BATCH, files.padding_id, heads_of(files))


def build_direct_on_gpu(
    model: "OpenModel", engine: EngineSettings, files: "ModelFiles", dimensions: int, max_batch_tokens: int
) -> "CudaDirectExecutor":
    """The direct executor on a GPU. dimensions: of the model's vectors."""
    from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor

    return CudaDirectExecutor(
        model,
        engine,
        dimensions,
        files.max_length,
        max_batch_tokens,
        SENTENCES_PER_BATCH,
        files.pooling,
        Steps(files.steps, model.device),
        files.padding_id,
        heads_of(files, model.device, model.dtype, max_pool=engine.kernels.max_pool),
    )


def without_kernels(engine: EngineSettings, *names: str) -> EngineSettings:
    """The settings with vLLM's kernels instead of ours. names: the switches; by default all."""
    kernels = engine.kernels.model_copy(update=dict.fromkeys(names or KernelSettings.model_fields, False))
    return engine.model_copy(update={"kernels": kernels})


def build_direct_of_rank(
    model: "OpenModel", engine: EngineSettings, files: "ModelFiles", scheduler: "Executor"
) -> "DirectExecutor | CudaDirectExecutor":
    """The direct executor of a rank (see `ranks`), without our kernels: those compute whole layers, not parts."""
    tokens = scheduler.max_batch_tokens
    if model.device.type == "cpu":
        return build_direct_on_cpu(model, files, tokens)
    return build_direct_on_gpu(model, without_kernels(engine), files, scheduler.dimensions, tokens)
