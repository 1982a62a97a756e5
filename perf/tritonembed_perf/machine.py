"""What a figure was measured on."""

import os
import platform
import sys
from pathlib import Path

from tritonembed_perf.run.environment import without_folder


def describe_machine() -> str:
    """Processor, cores, memory, GPUs and the versions that matter, in one line."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    parts = [cpu, f"{len(os.sched_getaffinity(0))} cores", f"{memory} GiB", f"Python {platform.python_version()}"]
    try:
        import torch

        parts.append(f"torch {torch.__version__}")
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except ImportError:
        pass
    return ", ".join(parts)


def describe_command(module: str) -> str:
    """This process's command as a report has it. module: of this package, run with `python -m`."""
    return " ".join(["python", "-m", f"tritonembed_perf.{module}", *map(without_folder, sys.argv[1:])])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
