"""vLLM engine arguments from the command line and from TRITONEMBED_… variables, read by vLLM's own parser.

TRITONEMBED_MAX_MODEL_LEN=512 stands for --max-model-len 512. vLLM takes seconds and hundreds of megabytes to import. So
its parser runs in a child process, and only if there are such arguments beside the few of PLAIN:
`python -m tritonembed_manager.server.vllm_arguments ARGUMENT…`

stdin: a JSON object of variables that may be vLLM's. The parser ignores unknown variables.
stdout: one line with a JSON object, which is {"given": {name: value}}, {"error": line} or, with every option of the
parser, {"unknown": argument, "options": [option, …]}.
"""

import argparse
import difflib
import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.errors import StartError

PREFIX = "TRITONEMBED_"
_CLIENT = PREFIX + "CLIENT_"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def variable(option: str) -> str:
    """The variable of an option: `--max-model-len` is TRITONEMBED_MAX_MODEL_LEN."""
    return PREFIX + option.removeprefix("--").replace("-", "_").upper()


def candidates(environment: Mapping[str, str], own_options: Iterable[str]) -> dict[str, str]:
    """The variables that may be vLLM's: they are not empty, and no option of the running command reads them.

    Only vLLM knows which of them it takes. The others belong to other commands and are no error.
    """
    own = {variable(option) for option in own_options}
    return {
        name: value
        for name, value in environment.items()
        if value and name.startswith(PREFIX) and not name.startswith(_CLIENT) and name not in own
    }


def _as_arguments(option: str, value: str, *, is_switch: bool, is_list: bool) -> list[str]:
    """The words that give an option this value on the command line. is_switch: the option takes no value there.

    Raises ValueError, which names the variable, if a switch is neither true nor false.
    """
    if is_switch:
        if value.lower() in _YES:
            return [option]
        if value.lower() in _NO:
            return ["--no-" + option.removeprefix("--")]
        raise ValueError(f"{variable(option)} is neither true nor false")
    return [option, *value.split()] if is_list else [f"{option}={value}"]


_FOLDERS = ("tokenizer", "hf_config_path", "download_dir")
"""Engine arguments that can name a folder. They are made absolute, because a server runs in another folder."""


PLAIN: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "--dtype": ("dtype", {"auto", "bfloat16", "float", "float16", "float32", "half"}.__contains__),
    "--quantization": ("quantization", {"fp8", "int8"}.__contains__),
    "--max-model-len": ("max_model_len", lambda value: value.isascii() and value.isdecimal()),
    "--revision": ("revision", lambda value: bool(value) and not value.startswith("-")),
}
"""Arguments whose usual values are read without vLLM, which the openvino executor does not need: their names in Python,
and whether a value is such a one."""

SERVED_NAME = "--served-model-name"
"""vLLM's engine argument that is an option of `serve` here."""


def one_value_each(arguments: Sequence[str]) -> list[str]:
    """Turn vLLM's `--served-model-name a b` into `--served-model-name a --served-model-name b`."""
    spread: list[str] = []
    names = 0
    for argument in arguments:
        if argument.startswith("-"):
            names = 1 if argument == SERVED_NAME else 0
        elif names:
            if names > 1:
                spread.append(SERVED_NAME)
            names += 1
        spread.append(argument)
    return spread


def with_dashes(argument: str) -> str:
    """Turn `--max_model_len=512` into `--max-model-len=512`. Like vLLM, the manager takes both spellings."""
    if not argument.startswith("--"):
        return argument
    end = min((i for i in (argument.find("="), argument.find(".")) if i > 0), default=len(argument))
    return argument[:end].replace("_", "-") + argument[end:]


def parse(
    arguments: Sequence[str], *, own_options: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The given engine arguments, by their Python names, as JSON values. The command line wins over a variable.

    own_options: the command's own options. Their variables are not vLLM's, and a misspelt name may mean one of them.
    environment: by default this process's.
    Raises StartError, which names the argument, if vLLM does not know an argument or refuses its value.
    """
    if any(argument.partition("=")[0] == SERVED_NAME for argument in arguments):
        raise StartError(
            f"{SERVED_NAME} is an option of `serve`; in a Triton repository the model is the ensemble `embedding`"
        )
    own_options = [*own_options, SERVED_NAME]
    variables = candidates(os.environ if environment is None else environment, own_options)
    if (plain := _without_vllm(arguments, variables)) is not None:
        return plain
    if not arguments and (not variables or importlib.util.find_spec("vllm") is None):
        return {}
    if arguments and not arguments[0].startswith("-"):
        raise StartError(f"unexpected argument {arguments[0]!r}")
    if importlib.util.find_spec("vllm") is None:
        name = arguments[0].partition("=")[0]
        meant = did_you_mean(name, own_options)
        raise StartError(f"unknown option {name}{meant} (vLLM, which has more options, is not installed here)")
    child = subprocess.run(
        module_command(__name__, *arguments),
        input=json.dumps(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        last = next((line for line in reversed(child.stderr.splitlines()) if line.strip()), "no reason given")
        raise StartError(f"vLLM's argument parser failed: {last.strip()}")
    parsed = json.loads(lines[-1])
    if "unknown" in parsed:
        raise StartError(_unknown(parsed["unknown"], [*parsed["options"], *own_options]))
    if "error" in parsed:
        raise StartError(parsed["error"])
    given: dict[str, Any] = parsed["given"]
    return {name: _from_anywhere(value) if name in _FOLDERS else value for name, value in given.items()}


def _without_vllm(arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any] | None:
    """The result of `parse` if all arguments and variables are of PLAIN; else None."""
    known = {variable(option): option for option in PLAIN}
    if not variables.keys() <= known.keys():
        return None
    words = [f"{known[name]}={value}" for name, value in variables.items()]
    rest = iter(arguments)
    for word in rest:
        words.append(word if "=" in word else f"{word}={next(rest, '')}")
    given: dict[str, Any] = {}
    for word in words:
        option, _, value = word.partition("=")
        name, is_plain = PLAIN.get(option, ("", bool))
        if not name or not is_plain(value):
            return None
        given[name] = int(value) if option == "--max-model-len" else value
    return given


def _from_anywhere(value: Any) -> Any:
    """A folder's absolute path; any other value, such as a name on the hub, unchanged."""
    return os.path.abspath(value) if isinstance(value, str) and (value[:1] == "." or os.path.isdir(value)) else value


def _unknown(name: str, options: Sequence[str]) -> str:
    if not name.startswith("-"):
        return f"unexpected argument {name!r}"
    return f"unknown option {name}{did_you_mean(name, options)}"


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of an error about an unknown option: the option that was probably meant; empty if no name is similar."""
    name = name.partition("=")[0]
    dashes = "--" if name.startswith("--") else "-"
    alike = [option for option in options if option.startswith(dashes)]
    close = difflib.get_close_matches(name, alike, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def own_options(context: Any) -> list[str]:
    """Every option of a typer command, including those that turn a switch off."""
    parameters = context.command.params
    return [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]


def missing_model(context: Any, otherwise: str = "") -> StartError:
    """The error for a --model that is missing, or misspelt among vLLM's arguments. otherwise: the alternatives."""
    misspelt = next((word for word in context.args if "--model?" in did_you_mean(word, own_options(context))), None)
    if misspelt is not None:
        return StartError(f"unknown option {misspelt.partition('=')[0]}; did you mean --model?")
    return StartError(f"--model is missing{otherwise}")


_UNRECOGNIZED = "unrecognized arguments: "


class _RefusedError(Exception):
    pass


def answer(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The child process: parse the arguments, and the variables that are vLLM's."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise _RefusedError(message)

    parser = Parser(add_help=False, allow_abbrev=False)
    EngineArgs.add_cli_args(parser)
    raw: dict[str, str] = {}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if action.type is not None:
            action.type = _remembering(action.type, action.dest, raw)
    try:
        # The last value of an option wins.
        given = vars(parser.parse_args([*_from_variables(parser, variables or {}), *arguments]))
    except (_RefusedError, ValueError) as refused:
        message = str(refused)
        if message.startswith(_UNRECOGNIZED):
            name = message.removeprefix(_UNRECOGNIZED).split()[0].partition("=")[0]
            options = [option for action in parser._actions for option in action.option_strings]
            return {"unknown": name, "options": options}
        return {"error": " ".join(message.split())}
    return {"given": {name: _as_json(value, raw.get(name)) for name, value in given.items()}}


def _from_variables(parser: argparse.ArgumentParser, variables: Mapping[str, str]) -> Iterator[str]:
    for action in parser._actions:
        for option in action.option_strings:
            value = variables.get(variable(option)) if option.startswith("--") else None
            if value is not None:
                yield from _as_arguments(option, value, is_switch=action.nargs == 0, is_list=action.nargs in ("+", "*"))


def _remembering(convert: Any, name: str, raw: dict[str, str]) -> Callable[[str], Any]:
    def remember(text: str) -> Any:
        raw[name] = text
        return convert(text)

    # argparse names the type in its error message.
    remember.__name__ = getattr(convert, "__name__", "value")
    return remember


def _as_json(value: Any, text: str | None) -> Any:
    """A value as model.json holds it. vLLM turns a nested configuration into an object; `text` is its JSON."""
    try:
        json.dumps(value)
    except TypeError:
        return json.loads(text) if text is not None else str(value)
    return value


if __name__ == "__main__":
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    # To collect and free a million imported objects would take a third of this process's time.
    gc.disable()
    print(json.dumps(answer(sys.argv[1:], json.load(sys.stdin))), flush=True)
    os._exit(0)
