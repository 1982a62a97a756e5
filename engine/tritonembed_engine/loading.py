"""vLLM, loaded in process for pooling, from model.json and the model's own files."""

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.scheduler import VLLM_POOLINGS, pools_in_vllm
from tritonembed_engine.model.folder import weights_folder
from tritonembed_engine.model.vllm_folder import vllm_folder
from tritonembed_engine.reasons import reason_of
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub import imports_that_stay

if TYPE_CHECKING:
    from vllm import LLM

    from tritonembed_engine.model.files import ModelFiles

logger = logging.getLogger(__name__)

SENTENCES_PER_BATCH = 1024
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}
"""Defaults: on a CPU larger batches gain nothing and cost latency; on an H200 BERT-base is at full speed from here."""


def load_vllm(settings: ModelSettings, files: "ModelFiles", device: str) -> "LLM":
    """The model in vLLM. device: "cpu" or "cuda".

    Raises ModelError, in one line, for what vLLM refuses.
    """
    with imports_that_stay():
        from vllm import LLM
        from vllm.config import PoolerConfig
    if device == "cpu":
        from tritonembed_engine.executors.vllm_internals import inspect_in_this_process

        inspect_in_this_process(files.architectures)
    arguments = _arguments(settings, files, device)
    # What vLLM does not have, it is not asked for: see SchedulerExecutor.
    if pools_in_vllm(files.pooling, files.include_prompt):
        pooler = PoolerConfig(task="embed", pooling_type=VLLM_POOLINGS[files.pooling[0]], use_activation=False)
    else:
        pooler = PoolerConfig(task="token_embed", use_activation=False)
    arguments["pooler_config"] = pooler
    complete = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    try:
        with vllm_folder(complete) as folder, _turn(device):
            arguments["model"] = str(folder)
            return LLM(**arguments)
    except ModelError:
        raise
    except TypeError as error:
        raise ModelError(f"vLLM refuses an engine argument: {error}") from None
    except Exception as error:
        # The log has all that vLLM says; the message says why in one line.
        logger.exception("vLLM could not load the model")
        reason = reason_of(error, str(arguments["model"]))
        raise ModelError(f"vLLM could not load the model: {reason}{_advice(reason, arguments)}") from error


def max_batch_tokens(settings: ModelSettings, files: "ModelFiles", device: str) -> int:
    """Token budget of a batch: what model.json says, at least one sentence of the model's maximum."""
    return max(settings.engine.max_batch_tokens or TOKENS_PER_BATCH[device], files.max_length)


def _arguments(settings: ModelSettings, files: "ModelFiles", device: str) -> dict[str, Any]:
    """LLM's arguments: ours, then what model.json says on top."""
    tokens = max_batch_tokens(settings, files, device)
    ours: dict[str, Any] = {
        "runner": "pooling",
        "max_model_len": files.max_length,
        "dtype": "float32" if device == "cpu" else "bfloat16",
        "enable_prefix_caching": False,
        # vLLM refuses more sentences than tokens.
        "max_num_seqs": min(SENTENCES_PER_BATCH, tokens),
        "max_num_batched_tokens": tokens,
        "disable_log_stats": True,
        "seed": 0,
    }
    if device == "cpu" or (settings.engine.executor != "scheduler" and not files.is_decoder):
        # On a CPU vLLM would compile with g++. On a GPU the direct executor puts its own kernels between the matrix
        # products and captures its own graphs; a model that vLLM has compiled would not call them.
        ours["enforce_eager"] = True
    # The folder is at hand by then, in the revision that was asked for.
    return ours | {name: value for name, value in settings.vllm.items() if name != "revision"}


def _advice(reason: str, arguments: dict[str, Any]) -> str:
    """What helps against a refusal of vLLM's, to be put behind it."""
    if not arguments.get("trust_remote_code") and any(word in reason for word in ("custom code", "repository content")):
        return "; the model has code of its own: --trust-remote-code runs it"
    if "KV cache" in reason:
        return "; a smaller --max-model-len needs less"
    return ""


@contextlib.contextmanager
def _turn(device: str) -> Iterator[None]:
    """One load at a time on a GPU: vLLM measures free memory while it loads, and another load would spoil that.

    What follows, the direct executor's making, goes on beside the next load: in turn too, three replicas took 47 s
    instead of 17 until they served.
    """
    if device == "cpu":
        yield
        return
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace("/", "-")
    lock = os.path.join(tempfile.gettempdir(), f"tritonembed-load-{os.getuid()}-{gpus}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
