"""vLLM engine arguments given on the command line or as TRITONEMBED_… variables, read by vLLM's own parser.

vLLM takes seconds and hundreds of megabytes to import, so that happens in a child, and only when there are such
arguments.
"""

import difflib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tritonembed_manager.engine_variables import candidates
from tritonembed_manager.errors import StartError

OWN = {"model": "--model", "tensor_parallel_size": "--tensor-parallel-size"}
"""Engine arguments that are options of the manager itself."""


def with_dashes(argument: str) -> str:
    """`--max_model_len=512` as `--max-model-len=512`: like vLLM, both spellings of an option's name are taken."""
    if not argument.startswith("--"):
        return argument
    end = min((i for i in (argument.find("="), argument.find(".")) if i > 0), default=len(argument))
    return argument[:end].replace("_", "-") + argument[end:]


def parse(
    arguments: Sequence[str], *, own_options: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The engine arguments given, by their Python names, as JSON values. The command line wins over a variable.

    own_options: the command's own, whose variables are not vLLM's; also for a suggestion when a name is misspelt.
    environment: by default this process's.
    Raises StartError, which names the argument, for one that vLLM does not know or a value it refuses.
    """
    own_options = list(own_options)
    variables = candidates(os.environ if environment is None else environment, own_options)
    if not arguments and (not variables or importlib.util.find_spec("vllm") is None):
        return {}
    if arguments and not arguments[0].startswith("-"):
        raise StartError(f"unexpected argument {arguments[0]!r}")
    if importlib.util.find_spec("vllm") is None:
        name = arguments[0].partition("=")[0]
        raise StartError(f"unknown option {name} (vLLM, which knows more of them, is not installed here)")
    child = subprocess.run(
        [sys.executable, "-m", "tritonembed_manager.vllm_parser", *arguments],
        input=json.dumps(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        last = next((line for line in reversed(child.stderr.splitlines()) if line.strip()), "no reason given")
        raise StartError(f"vLLM's argument parser failed: {last.strip()}")
    answer = json.loads(lines[-1])
    if "unknown" in answer:
        raise StartError(_unknown(answer["unknown"], [*answer["options"], *own_options]))
    if "error" in answer:
        raise StartError(answer["error"])
    given: dict[str, Any] = answer["given"]
    return given


def _unknown(name: str, options: Sequence[str]) -> str:
    if not name.startswith("-"):
        return f"unexpected argument {name!r}"
    close = difflib.get_close_matches(name, options, n=1)
    return f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")
