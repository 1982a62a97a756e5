"""Command lines of Python processes that import nothing from the current folder."""

import sys

_RUN_MODULE = "import sys; del sys.path[0]; import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """`python -m MODULE ARGUMENT…`, but without the current folder on the path, where `-m` puts it first."""
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", module, *arguments]
    return [python, "-c", _RUN_MODULE, module, *arguments]
