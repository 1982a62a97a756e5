"""Command lines of Python processes that import nothing from the current folder."""

import shutil
import sys
from pathlib import Path

_RUN_MODULE = "import sys; del sys.path[0]; import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """`python -m MODULE ARGUMENT…`, but without the current folder on the path, where `-m` puts it first."""
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", module, *arguments]
    return [python, "-c", _RUN_MODULE, module, *arguments]


def stub_python() -> str:
    """The interpreter. Triton's stub has none in `sys.executable`, but it uses the packages of the one on PATH."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return shutil.which("python3") or "python3"
