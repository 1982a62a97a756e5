"""Finds the tritonserver of this machine."""

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_manager.errors import StartError

CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
STUB = "triton_python_backend_stub"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started."""

    binary: Path
    backends: Path | None
    """Its backend folder; None: the server's own default."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables it needs beside the inherited ones."""


def find_tritonserver(given: Path | None, work: Path) -> Installation:
    """The server to run: `given`, else on PATH, in the container's place, or in the nvidia-pytriton wheel.

    work: a folder of ours, where the wheel's backend folder is put together.
    Raises StartError, in one line, when there is none or when it lacks something.
    """
    wheel = _wheel_folder()
    if given is not None:
        binary = shutil.which(given)
        if binary is None:
            raise StartError(f"--tritonserver: {given} is not a program")
    else:
        binary = shutil.which("tritonserver") or shutil.which(CONTAINER_BINARY)
    if binary is not None and (wheel is None or Path(binary).resolve().parent != wheel / "bin"):
        return _installed(Path(binary).resolve())
    if wheel is not None:
        return _from_wheel(wheel, work)
    raise StartError(
        "no tritonserver: not on PATH, not in /opt/tritonserver, and nvidia-pytriton, whose wheel carries one, "
        "is not installed; name it with --tritonserver"
    )


def _installed(binary: Path) -> Installation:
    backends = binary.parent.parent / "backends"
    stub = backends / "python" / STUB
    environment = {}
    if stub.is_file() and _python_of(stub) == PYTHON:
        environment["PATH"] = _interpreter_first()
    return Installation(binary, backends if backends.is_dir() else None, environment)


def _wheel_folder() -> Path | None:
    # find_spec does not run the package, whose import would start more than is wanted here.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))).resolve() / "tritonserver"
    return folder if (folder / "bin" / "tritonserver").is_file() else None


def _from_wheel(folder: Path, work: Path) -> Installation:
    """The wheel keeps one stub per Python beside the backends: the one of this Python has to lie in the backend."""
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
    libraries = [folder.parent.parent / "nvidia_pytriton.libs", _libpython().parent]
    inherited = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    search = ":".join([*map(str, libraries), *inherited])
    return Installation(
        folder / "bin" / "tritonserver",
        backend.parent,
        {"LD_LIBRARY_PATH": search, "PATH": _interpreter_first()},
    )


def _interpreter_first() -> str:
    """The stub takes its packages from the first python3 on PATH: this interpreter's."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _libpython() -> Path:
    """The shared library of this Python, which the stub embeds."""
    name = f"libpython{PYTHON}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}", "/usr/lib64"]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise StartError(f"{name} is missing, which Triton's python backend needs: apt-get install libpython{PYTHON}")


def _python_of(stub: Path) -> str | None:
    """Which Python a stub embeds, as `3.12`."""
    found = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return found.group(1).decode() if found else None
