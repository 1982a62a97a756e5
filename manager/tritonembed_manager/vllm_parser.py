"""`python -m tritonembed_manager.vllm_parser ARGUMENT…` prints, as its last line, what vLLM's parser makes of them.

On stdin it reads a JSON object of variables that may be vLLM's (engine_variables.py); those that it does not know are
left alone. The line is one JSON object: {"given": {name: value}}, {"error": line} or, with every option there is,
{"unknown": argument, "options": [option, …]}.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tritonembed_manager.engine_variables import as_arguments, variable

_UNRECOGNIZED = "unrecognized arguments: "


class _RefusedError(Exception):
    pass


def answer(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What vLLM's parser makes of the arguments, and of those variables that are its own."""
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
        # What comes later wins.
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
                yield from as_arguments(option, value, is_switch=action.nargs == 0, is_list=action.nargs in ("+", "*"))


def _remembering(convert: Any, name: str, raw: dict[str, str]) -> Callable[[str], Any]:
    def remember(text: str) -> Any:
        raw[name] = text
        return convert(text)

    # argparse names the type in its error message.
    remember.__name__ = getattr(convert, "__name__", "value")
    return remember


def _as_json(value: Any, text: str | None) -> Any:
    """A value as model.json holds it: vLLM turns a nested configuration into an object, whose text is JSON already."""
    try:
        json.dumps(value)
    except TypeError:
        return json.loads(text) if text is not None else str(value)
    return value


if __name__ == "__main__":
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    # A million imported objects end with this process: collecting and freeing them would take a third of its time.
    gc.disable()
    print(json.dumps(answer(sys.argv[1:], json.load(sys.stdin))), flush=True)
    os._exit(0)
