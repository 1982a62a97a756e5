"""The environment of this process and its children: nothing is taken from the current folder, and gRPC is quiet.

That folder may hold anything, such as a download or a stranger's repository. An empty entry of PATH, LD_LIBRARY_PATH or
PYTHONPATH means the current folder, and `python -m` adds it to Python's path. This module cleans the variables for the
processes that the manager starts. The dynamic linker of this process has already read them.
"""

import os
import sys

# Under `python -m`, `typing` could still come from the current folder. Python has already imported os and sys.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

_SEARCHED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
_RUN_BY_INTERPRETERS = ("PYTHONSTARTUP", "PYTHONINSPECT", "BASH_ENV", "ENV")
"""Variables that make Python or a shell run further code.

Triton starts its python processes through bash. PYTHONINSPECT also loses the exit code.
"""

_FOLDERS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRANSFORMERS_CACHE",
    "TRITON_CACHE_DIR",
    "VLLM_CACHE_ROOT",
    "XDG_CACHE_HOME",
)
"""Variables whose folders are made absolute, because servers run in another current folder."""

_GRPC_LOG = "GRPC_VERBOSITY"


def leave_current_folder(*, started_as_module: bool = False) -> None:
    """Clean this process's own path and environment. started_as_module: whether `python -m` started it."""
    entries = os.environ.get("PYTHONPATH", "x").split(os.pathsep)
    clean(os.environ)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return
    if started_as_module and not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    # Python turns an empty entry into the folder's full name.
    if "" in entries and here not in entries and here in sys.path:
        sys.path.remove(here)


def clean(environment: "MutableMapping[str, str]") -> None:
    """Remove the entries of an environment that make a process take files from its current folder."""
    for name in _SEARCHED:
        entries = [entry for entry in environment.get(name, "").split(os.pathsep) if entry]
        if name == "PATH":
            entries = [entry for entry in entries if os.path.isabs(entry)] or os.defpath.split(os.pathsep)
        if entries:
            environment[name] = os.pathsep.join(map(os.path.abspath, entries))
        else:
            environment.pop(name, None)
    for name in _FOLDERS:
        if environment.get(name, "~")[:1] not in ("", "~"):
            environment[name] = os.path.abspath(environment[name])
    for name in _RUN_BY_INTERPRETERS:
        environment.pop(name, None)
    # For children of children, which vLLM and multiprocessing start. Python 3.10 ignores it.
    environment["PYTHONSAFEPATH"] = "1"


def import_grpc_quietly() -> None:
    """Import gRPC so that its core writes nothing to stderr, unless the user has set its variable.

    gRPC reads the variable when it is imported. Processes that are started later don't inherit it.
    """
    if _GRPC_LOG in os.environ:
        return
    os.environ[_GRPC_LOG] = "NONE"
    try:
        import grpc  # noqa: F401
    finally:
        del os.environ[_GRPC_LOG]
