"""Prepare a process that Triton started, before it imports torch and vLLM.

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
from pathlib import Path

CPU_KV_CACHE_GIB = "1"
SHARED_MEMORY = Path("/dev/shm")

STARTING = "starting: "
"""The prefix of lines that report a step of the start. The manager shows the latest while it waits."""

logger = logging.getLogger(__name__)


def prepare_process(visible_gpus: str | None) -> None:
    """Set locale and environment. visible_gpus: what CUDA_VISIBLE_DEVICES becomes; None leaves CUDA out (CPU)."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus or ""
    make_region_private()
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


def make_region_private(command: Path = Path("/proc/self/cmdline"), folder: Path = SHARED_MEMORY) -> None:
    """Make this stub's shared memory private. Texts and vectors pass through it, and Triton lets every user
    read it.

    To be called before the first request. command: the arguments of the stub; one of them is the region's name.
    """
    with contextlib.suppress(OSError):
        for word in command.read_bytes().split(b"\0"):
            name = os.fsdecode(word).lstrip("/")
            if name and "/" not in name and (region := folder / name).is_file():
                region.chmod(0o600)


def log_as(instance: str) -> None:
    """Send the engine's log to stderr with a prefix that sets it apart from Triton's and vLLM's lines.

    instance: Triton's name of the instance, such as `embedder_0_0`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"tritonembed: {instance}: %(message)s"))
    ours = logging.getLogger("tritonembed_engine")
    ours.handlers = [handler]
    ours.propagate = False


def announce(step: str) -> None:
    """Log the step of the start that begins now, such as "loading the weights"."""
    logger.warning("%s%s", STARTING, step)


def leave_out_torch() -> None:
    """Keep transformers from importing torch, which a tokenizer does not need: a process takes 75 MB instead of 460."""
    sys.modules["torch"] = None  # type: ignore[assignment]


@contextlib.contextmanager
def imports_that_stay() -> Iterator[None]:
    """Around imports: exempt their objects from garbage collection, as they stay as long as the process.

    vLLM makes a million objects, and collecting them again and again took a fifth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_at_once() -> None:
    """End the process without the interpreter's own shutdown, which takes seconds. The exit code is 0.

    Register it with atexit before all other functions, so that it runs last.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
