"""What a process started by Triton needs before torch and vLLM are imported in it.

Triton's python stub is an isolated interpreter: it ignores PYTHONPATH and PYTHONUTF8 and starts in the C locale, in
which torch fails to read its own files.
"""

import contextlib
import gc
import locale
import logging
import os
import socket
import sys
from collections.abc import Iterator

CPU_KV_CACHE_GIB = "1"


def prepare_process(visible_gpus: str | None) -> None:
    """Set locale and environment. visible_gpus: what CUDA_VISIBLE_DEVICES becomes; None leaves CUDA out (CPU)."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus or ""
    defaults = {
        # In process: no engine-core child, no copies between the two.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        # oneDNN keeps a primitive for every number of tokens that a batch ever had, up to 1024 of them: 800 MB once.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
        "LRU_CACHE_CAPACITY": "16",
        # Many instances are the parallelism; threads inside each would fight over the cores.
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Every instance forms a torch.distributed group of its own, of one process: it needs a port of its own.
    os.environ["MASTER_PORT"] = str(_free_port())


def log_as(instance: str) -> None:
    """The engine's log goes to stderr, marked as ours, so that who runs the server finds it among Triton's and vLLM's.

    instance: Triton's name of this one, such as `embedder_0_0`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"tritonembed: {instance}: %(message)s"))
    logger = logging.getLogger("tritonembed_engine")
    logger.handlers = [handler]
    logger.propagate = False


def leave_out_torch() -> None:
    """Keep transformers from importing torch: a tokenizer needs none of it; with it a process takes 460 MB, not 75."""
    sys.modules["torch"] = None  # type: ignore[assignment]


@contextlib.contextmanager
def imports_that_stay() -> Iterator[None]:
    """Around imports: the garbage collector leaves alone what they make, as it stays as long as the process.

    vLLM's are a million objects, and going through them again and again took a fifth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_at_once() -> None:
    """Skip the interpreter's own end, which takes seconds to free what the process takes along anyway.

    Register it with atexit before all else, so that it comes last; the exit code is 0.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
