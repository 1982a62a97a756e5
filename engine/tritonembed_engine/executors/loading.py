"""vLLM, loaded in process for pooling, from model.json and the model's own files."""

import contextlib
import gc
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.model.folder import read_object, weights_folder
from tritonembed_engine.model.vllm_folder import vllm_folder
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.child_python import turn
from tritonembed_engine.stub.process import announce, imports_that_stay

if TYPE_CHECKING:
    from vllm import LLM

    from tritonembed_engine.model.files import ModelFiles

logger = logging.getLogger(__name__)

SENTENCES_PER_BATCH = 1024
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}
"""Defaults. On a CPU larger batches gain nothing and cost latency; an H200 reaches full speed with BERT-base here."""


LONGEST_IN_CACHE = 1024
"""Tokens of the longest text that fits vLLM's KV cache, if the direct executor is to serve a causal model. Only the
check uses the cache. For 32,768 tokens Qwen3-Embedding-0.6B would need 7 GiB in float32."""


def tries_direct(settings: ModelSettings) -> bool:
    """Whether the direct executor is to serve a model that vLLM loads."""
    return settings.engine.executor in ("auto", "direct")


def needs_no_cache(settings: ModelSettings, files: "ModelFiles") -> bool:
    """Whether the direct executor is to run a causal model, so that vLLM's KV cache is only for the check."""
    # On several GPUs the model could not be loaded again if the direct executor declines it.
    parallel = any(settings.vllm.get(f"{kind}_parallel_size", 1) != 1 for kind in ("tensor", "pipeline"))
    return files.is_causal and tries_direct(settings) and not parallel


def longest_in_vllm(settings: ModelSettings, files: "ModelFiles") -> int:
    """Tokens of the longest text that vLLM has to run itself."""
    if not needs_no_cache(settings, files):
        return files.max_length
    if "longrope" in json.dumps(read_object(files.transformer / "config.json")):
        # vLLM chooses the scale of positions by the longest text.
        return files.max_length
    return min(files.max_length, LONGEST_IN_CACHE)


def has_small_cache(settings: ModelSettings, files: "ModelFiles", device: str) -> bool:
    """Whether vLLM's cache holds only the texts of the check.

    Otherwise vLLM would take most of a GPU's memory for the cache. Once that is freed, vLLM's measurement of memory
    fails in the next replica. On a CPU the memory is not touched before it is used.
    """
    return device == "cuda" and needs_no_cache(settings, files)


def load_vllm(
    settings: ModelSettings, files: "ModelFiles", device: str, longest: int | None = None, rank: int | None = None
) -> "LLM":
    """The model in vLLM. device: "cpu" or "cuda". longest: of `longest_in_vllm`; None if vLLM has to run all texts.

    rank: of this process, if every rank of the replica calls this. Raises ModelError, in one line, if vLLM refuses it.
    """
    announce("importing vLLM")
    with imports_that_stay():
        from vllm import LLM
        from vllm.config import PoolerConfig
    # Imported here: they import torch.
    from tritonembed_engine.executors.scheduler import pooling_in_vllm
    from tritonembed_engine.executors.vllm_internals import OWN_LAUNCHER, inspect_in_this_process

    if device == "cpu":
        inspect_in_this_process(files.architectures)
    arguments = _arguments(settings, files, device, longest)
    # The engine pools if vLLM lacks the pooling: see SchedulerExecutor.
    if pooling := pooling_in_vllm(files.pooling, files.include_prompt, files.token_outputs.per_token):
        pooler = PoolerConfig(task="embed", pooling_type=pooling, use_activation=False)
    else:
        pooler = PoolerConfig(task="token_embed", use_activation=False)
    arguments["pooler_config"] = pooler
    if rank is not None:
        arguments["distributed_executor_backend"] = OWN_LAUNCHER
    announce("fetching the weights")
    complete = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    try:
        # Rank 0 takes the turn of all ranks.
        with vllm_folder(complete) as folder, contextlib.nullcontext() if rank else _turn(device):
            arguments["model"] = str(folder)
            announce("loading the weights")
            return LLM(**arguments)
    except ModelError:
        raise
    except TypeError as error:
        raise ModelError(f"vLLM refuses an engine argument: {error}") from None
    except Exception as error:
        # The log has all of vLLM's message; the error has its reason in one line.
        logger.exception("vLLM could not load the model")
        reason = reason_of(error, str(arguments["model"]))
        if not (longest is not None and has_small_cache(settings, files, device) and "KV cache" in reason):
            raise ModelError(f"vLLM could not load the model: {reason}{_advice(reason, arguments)}") from error
    # Outside of the handler, which keeps the failed load's memory.
    gc.collect()
    logger.warning("vLLM gets its whole cache: the small one does not hold a text")
    return load_vllm(settings, files, device)


def max_batch_tokens(settings: ModelSettings, files: "ModelFiles", device: str) -> int:
    """Token budget of a batch: model.json's, but at least the longest sentence."""
    return max(settings.engine.max_batch_tokens or TOKENS_PER_BATCH[device], files.max_length)


def _arguments(settings: ModelSettings, files: "ModelFiles", device: str, longest: int | None = None) -> dict[str, Any]:
    """LLM's arguments: our own, overridden by those of model.json. longest: see `load_vllm`."""
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
    if device == "cpu" or tries_direct(settings):
        # On a CPU vLLM would compile with g++. On a GPU the direct executor captures its own graphs and puts its own
        # kernels between the matrix products; a model that vLLM compiled would not call the kernels.
        ours["enforce_eager"] = True
    if longest is not None and has_small_cache(settings, files, device):
        ours["kv_cache_memory_bytes"] = _cache_for_the_check(files, longest)
    # The folder already has the right revision.
    chosen = ours | {name: value for name, value in settings.vllm.items() if name != "revision"}
    if longest is not None and longest < files.max_length:
        chosen["max_model_len"] = longest
    return chosen


def _cache_for_the_check(files: "ModelFiles", longest: int) -> int | None:
    """Bytes of a KV cache for four texts of `longest` tokens; None (vLLM's default) if config.json lacks the shape."""
    config = read_object(files.transformer / "config.json")
    try:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        # Keys and values of four bytes.
        per_token = 2 * 4 * layers * config.get("num_key_value_heads", heads) * width
        return int(per_token * 4 * max(longest, LONGEST_IN_CACHE))
    except (KeyError, TypeError):
        return None


def _advice(reason: str, arguments: dict[str, Any]) -> str:
    """Advice to append to a refusal by vLLM."""
    if not arguments.get("trust_remote_code") and any(word in reason for word in ("custom code", "repository content")):
        return "; the model has code of its own: --trust-remote-code runs it"
    if "KV cache" in reason:
        return "; a smaller --max-model-len needs less memory"
    return ""


@contextlib.contextmanager
def _turn(device: str) -> Iterator[None]:
    """One load at a time on a GPU: vLLM measures free memory while it loads, and another load would falsify that.

    The direct executor is made after the turn, while the next replica loads: three replicas serve after 17 s instead of
    47 s.
    """
    if device == "cpu":
        yield
        return
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace("/", "-")
    lock = Path(tempfile.gettempdir(), f"tritonembed-load-{os.getuid()}-{gpus}.lock")
    with turn(lock, "waiting for its turn: another replica loads on this GPU"):
        yield


_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
"""vLLM's names to torch's."""

CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags of processors that multiply bfloat16; the last is arm64's."""

INT8 = "int8"
"""The value of `--quantization` that is ours, in the openvino executor; others are vLLM's."""

_INTEGERS = ("avx512_vnni", "avx_vnni")
"""Flags of processors that multiply int8 in OpenVINO's dynamic quantization."""

_CHANGES_THE_MODEL = ("quantization", "hf_overrides", "tensor_parallel_size", "pipeline_parallel_size")


def refuse_arguments(settings: ModelSettings, files: "ModelFiles", executor: str) -> None:
    """Raise ModelError for engine arguments that change the model, and that only vLLM follows."""
    for argument in _CHANGES_THE_MODEL:
        if settings.vllm.get(argument) not in (None, 1, {}):
            raise ModelError(f"{files.name}: the {executor} executor has no {argument}")


def reason_against_bfloat16(settings: ModelSettings) -> str | None:
    """Why a CPU can't serve in bfloat16; None if it can, or if another type is asked for."""
    if str(settings.vllm.get("dtype") or "").removeprefix("torch.") != "bfloat16":
        return None
    if _lacks(_BFLOAT16):
        return (
            "this processor does not multiply bfloat16 (AMX or AVX512-BF16) and would be many times slower than in"
            " float32: leave out --dtype bfloat16"
        )
    return None


def reason_against_int8(settings: ModelSettings, files: "ModelFiles", device: str) -> str | None:
    """Why int8 can't be served; None if it can, or if it is not asked for."""
    if settings.vllm.get("quantization") != INT8:
        return None
    if device != "cpu":
        return "--quantization int8 is for CPUs; on a GPU there is fp8"
    if settings.engine.executor not in ("auto", "openvino"):
        return f"the {settings.engine.executor} executor has no int8, only the openvino executor has"
    if settings.adapters:
        return "--quantization int8 serves no adapters"
    if files.classifier is not None or not files.token_outputs.dense:
        return "--quantization int8 is for models with dense vectors, whose nearest can be compared"
    if _lacks(_INTEGERS):
        return (
            "this processor does not multiply int8 (AVX512-VNNI or AVX-VNNI) and would be no faster than in float32:"
            " leave out --quantization int8"
        )
    return None


def _lacks(flags: tuple[str, ...]) -> bool:
    """Whether this machine's processor has none of the flags, as far as that can be read."""
    with contextlib.suppress(OSError):
        found = {*CPUINFO.read_text().split()}
        return bool(found) and not found.intersection(flags)
    return False


def asked_dtype(settings: ModelSettings, config: Mapping[str, Any], device: str, executor: str) -> str:
    """The type to compute in, by torch's name. As in vLLM, `auto` is the checkpoint's type if it has 16 bits.

    config: config.json. device: "cpu" or "cuda". executor: for messages. Raises ModelError for other types.
    """
    default = "float32" if device == "cpu" else "bfloat16"
    name = str(settings.vllm.get("dtype") or "").removeprefix("torch.")
    if name == "auto":
        stored = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), default)
        return default if stored == "float32" else stored
    if name and name not in _DTYPES:
        raise ModelError(f"the {executor} executor has no dtype {name[:40]}")
    return _DTYPES.get(name, default)


def filler_id(files: "ModelFiles") -> int:
    """The id that fills rows: the model's own, or 0."""
    given = read_object(files.transformer / "config.json").get("pad_token_id")
    return given if isinstance(given, int) and 0 <= given < files.vocab_size else 0
