"""The tritonserver of this machine: its path, the environment that it needs, and its command line.

The environment preloads tcmalloc if the machine has it. Triton allocates and frees a few dozen small blocks for each
request, in many threads. With glibc's allocator, these threads wait for one another. On an H200 with 16 cores, tcmalloc
serves 1.2 times as many single-sentence requests (perf/README.md).

With NVIDIA's Multi-Process Service (MPS), replicas that share a GPU run on it at the same moment instead of taking
turns. Three replicas of BERT-base on an H200 process 1.09 times as many tokens (perf/README.md). A fault in one client
of an MPS daemon ends all its clients. So each server has its own daemon, because a server with a dead replica is
restarted as a whole anyway.
"""

import ctypes.util
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import resolve
from tritonembed_manager.server.repository import ModelConfig, instance_kinds, read_configs, share_a_gpu
from tritonembed_manager.server.run_folder import plain
from tritonembed_manager.server.settings import ServerSettings

CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
STUB = "triton_python_backend_stub"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started."""

    binary: Path
    backends: Path | None
    """The backend folder; None for the server's own default."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that it needs in addition to the inherited ones."""


def find_tritonserver(given: Path | None, work: Path) -> Installation:
    """Return `given`, or else the server on PATH, in the container's folder or in the nvidia-pytriton wheel.

    work: a folder of ours, in which the wheel's backend folder is put together.
    Raises StartError if there is no server, or if a part of it is missing.
    """
    wheel = _wheel_folder()
    if given is not None:
        binary = shutil.which(given)
        if binary is None:
            raise StartError(f"--tritonserver: {given} is not a program")
    else:
        binary = shutil.which("tritonserver") or shutil.which(CONTAINER_BINARY)
    if binary is not None and (wheel is None or Path(binary).resolve().parent != wheel / "bin"):
        return _installed(Path(binary).resolve(), work)
    if wheel is not None:
        return _from_wheel(wheel, work)
    raise StartError(
        "no tritonserver: not on PATH, not in /opt/tritonserver, and nvidia-pytriton, whose wheel has one, is not "
        "installed; give its path with --tritonserver"
    )


def _installed(binary: Path, work: Path) -> Installation:
    backends = binary.parent.parent / "backends"
    stub = backends / "python" / STUB
    environment = {}
    if stub.is_file() and _python_of(stub) == PYTHON:
        environment["PATH"] = _interpreter_first()
    return Installation(binary, plain(backends, work) if backends.is_dir() else None, environment)


def _wheel_folder() -> Path | None:
    # find_spec does not import the package, because an import would start more than is needed here.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))).resolve() / "tritonserver"
    return folder if (folder / "bin" / "tritonserver").is_file() else None


def _from_wheel(folder: Path, work: Path) -> Installation:
    """Put the wheel's python backend together in `work`. Raises StartError if it does not support this Python.

    The wheel keeps one stub per Python version outside the backends. This version's stub has to be in the backend.
    """
    stub = folder / "python_backend_stubs" / PYTHON / STUB
    if not stub.is_file():
        there = ", ".join(sorted(path.parent.name for path in folder.glob(f"python_backend_stubs/*/{STUB}")))
        raise StartError(f"the Triton of nvidia-pytriton has no python backend for Python {PYTHON}, only for {there}")
    backend = work / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        link = backend / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder / "backends" / "python" / name)
    shutil.copy(stub, backend / STUB)
    (backend / STUB).chmod(0o755)
    libraries = [plain(one, work) for one in (folder.parent.parent / "nvidia_pytriton.libs", _libpython().parent)]
    inherited = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    search = ":".join([*map(str, libraries), *inherited])
    return Installation(
        folder / "bin" / "tritonserver",
        backend.parent,
        {"LD_LIBRARY_PATH": search, "PATH": _interpreter_first()},
    )


def _interpreter_first() -> str:
    """PATH with this interpreter first, because the stub takes its packages from the first python3."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _libpython() -> Path:
    """The shared library of this Python, which the stub embeds. Raises StartError if it is missing."""
    name = f"libpython{PYTHON}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}", "/usr/lib64"]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise StartError(f"{name} is missing, which Triton's python backend needs: apt-get install libpython{PYTHON}")


def _python_of(stub: Path) -> str | None:
    """The version of Python that a stub embeds, such as `3.12`; None if it is unknown."""
    found = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return found.group(1).decode() if found else None


_PRELOAD = "LD_PRELOAD"
_ALLOCATORS = ("tcmalloc_minimal", "tcmalloc")
"""Debian's libtcmalloc-minimal4, then the library in Triton's containers."""


def preload_tcmalloc(
    environment: Mapping[str, str], find: Callable[[str], str | None] = ctypes.util.find_library
) -> dict[str, str]:
    """Return LD_PRELOAD for a server's environment; nothing if it is set, even to "", or if there is no tcmalloc.

    Not for a CPU server: its embedder returns memory through glibc's `malloc_trim`.
    """
    if _PRELOAD in environment:
        return {}
    found = next((library for name in _ALLOCATORS if (library := find(name)) is not None), None)
    return {} if found is None else {_PRELOAD: found}


MODEL_LOAD_THREADS = 16
"""Tokenizer and embedder instances load at the same time; Triton's default of 4 would make them queue."""


def server_command(
    installation: Installation, repository: Path, settings: ServerSettings, region_prefix: str, *, gpu_metrics: bool
) -> list[str]:
    """Return the program and its arguments. region_prefix: prefix of this server's regions in /dev/shm."""
    grpc_address, _ = _listen_addresses(settings.host)
    _, http_address = _listen_addresses(settings.http_host)
    _, metrics_address = _listen_addresses(settings.metrics_host)
    command = [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--model-control-mode={settings.model_control_mode}",
        f"--grpc-address={grpc_address}",
        f"--grpc-port={settings.grpc_port}",
        f"--http-address={http_address}",
        f"--http-port={settings.http_port}",
        f"--metrics-address={metrics_address}",
        f"--metrics-port={settings.metrics_port}",
        f"--exit-timeout-secs={max(1, round(settings.drain_timeout))}",
        f"--model-load-thread-count={MODEL_LOAD_THREADS}",
        # The configurations are complete. To complete them, Triton would start every stub once more.
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        f"--backend-config=python,stub-timeout-seconds={max(30, round(settings.startup_timeout))}",
    ]
    if settings.model_control_mode == "explicit":
        command.append("--load-model=*")
    if installation.backends is not None:
        command.append(f"--backend-directory={installation.backends}")
    if not gpu_metrics:
        # Without a GPU, these features only log that there is no GPU.
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if settings.triton_traces is not None:
        # A lower rate would also omit requests with a traceparent, whose traces would end here.
        command += [f"--trace-config={option}" for option in ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS")]
        resource = "opentelemetry,resource=service.name=tritonembed-server"
        command += [f"--trace-config=opentelemetry,url={settings.triton_traces}", f"--trace-config={resource}"]
    if settings.log_verbose and settings.log_requests:
        command.append("--log-verbose=1")
    return command


def _listen_addresses(host: str) -> tuple[str, str]:
    """The address as gRPC takes it, and as Triton's HTTP server takes it.

    In any other form, the HTTP server would listen on 255.255.255.255.
    """
    family, (address, *_) = resolve(host)
    return (f"[{address}]", f"ipv6:{address}") if family is socket.AF_INET6 else (address, address)


DAEMON = "nvidia-cuda-mps-control"
MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
USUAL_SOCKET = Path("/tmp/nvidia-mps/control")
"""Socket of a daemon that was started without that variable. CUDA finds it without help."""

_SHIM = Path(__file__).with_name("mps_shim.py")


def with_mps(
    command: Sequence[str], configs: Iterable[ModelConfig], environment: Mapping[str, str], folder: Path
) -> Sequence[str]:
    """Return the server's command line; with an MPS daemon if its replicas share a GPU and MPS is installed.

    configs: the models' configurations. environment: the server's. If it has the variable, or a daemon already runs,
    no daemon is added. folder: the server's own, for the daemon's files.
    """
    daemon = shutil.which(DAEMON, path=environment.get("PATH"))
    if daemon is None or MPS_PIPES in environment or USUAL_SOCKET.exists() or not share_a_gpu(configs):
        return command
    return [sys.executable, "-I", str(_SHIM), str(folder / "mps"), daemon, *command]


def command_and_environment(
    installation: Installation,
    repository: Path,
    settings: ServerSettings,
    environment: Mapping[str, str],
    folder: Path,
) -> tuple[Callable[[str], Sequence[str]], dict[str, str]]:
    """How to start a server: a function that makes its command line from the prefix of its regions, and its
    environment.

    environment: what it inherits. folder: the server's own, for an MPS daemon's files.
    """
    configs = read_configs(repository).values()
    on_gpu = instance_kinds(configs) != {"KIND_CPU"}
    environment = {**environment, **installation.environment}
    if on_gpu:
        environment |= preload_tcmalloc(environment)

    def command(region_prefix: str) -> Sequence[str]:
        plain_command = server_command(installation, repository, settings, region_prefix, gpu_metrics=on_gpu)
        return with_mps(plain_command, configs, environment, folder) if settings.mps else plain_command

    return command, environment
