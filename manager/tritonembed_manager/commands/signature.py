"""Makes the options of a command from its parameters. A parameter can be a dataclass, whose fields are options then.

An option is declared once, as `Annotated[type, typer.Option(default, help=…)]`. Its name and its variable come from the
name of the field: `drain_timeout` is --drain-timeout and TRITONEMBED_DRAIN_TIMEOUT, unless typer.Option names others.
A field's own default (`= 5`) replaces the declared default in this command.
"""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo, ParameterInfo

from tritonembed_manager.server.vllm_arguments import variable


def with_options(command: Callable[..., Any], *, variables: bool = True) -> Callable[..., Any]:
    """The function that typer registers: it takes each option by its name, and calls `command` with its dataclasses.

    variables: whether options are variables, too.
    """
    hints = {name: hint for name, hint in _hints(command).items() if name != "return"}
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    members = {name: [field.name for field in fields(kind)] for name, kind in groups.items()}
    parameters = []
    for name, hint in hints.items():
        if name in groups:
            own = _hints(hint)
            parameters += [
                _parameter(field.name, own[field.name], variables, field.default) for field in fields(groups[name])
            ]
        else:
            parameters.append(_parameter(name, hint, variables))

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        built = {name: groups[name](**{field: given.pop(field) for field in members[name]}) for name in groups}
        return command(**given, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def marked(options: type, mark: object) -> list[str]:
    """The fields of a dataclass of options that are `Annotated` with this mark."""
    return [name for name, hint in _hints(options).items() if mark in get_args(hint)[1:]]


def on_command_line(context: typer.Context) -> dict[str, str]:
    """The options given on the command line, by parameter.

    Variables don't count, because they may be meant for other commands.
    """
    names = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name: names[name] for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def _hints(described: Any) -> dict[str, Any]:
    return get_type_hints(described, include_extras=True)


def _parameter(name: str, hint: Any, variables: bool, default: Any = MISSING) -> inspect.Parameter:
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    infos = [copy(note) for note in notes if isinstance(note, ParameterInfo)]
    info = infos[-1] if infos else inspect.Parameter.empty
    if isinstance(info, OptionInfo):
        info.default = info.default if default is MISSING else default
        info.param_decls = info.param_decls or (f"--{name.replace('_', '-')}",)
        if info.envvar is None and variables:
            info.envvar = [variable(option.partition("/")[0]) for option in info.param_decls]
        info.envvar = info.envvar or None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)
