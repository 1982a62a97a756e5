"""Options from dataclasses: their names, variables and defaults, and the objects that a command receives."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from tritonembed_manager.commands.options import marked, on_command_line, with_options

Wait = Annotated[float, typer.Option(30.0, min=1, help="Seconds.")]


@dataclass(frozen=True, kw_only=True)
class Group:
    drain_timeout: Annotated[Wait, "a mark"]
    start_wait: Wait = 5.0
    kind: Annotated[Literal["a", "b"], typer.Option("a", "--kind", "--sort", envvar=[])]
    quiet: Annotated[bool, typer.Option(False)]


def call(*arguments: str, env: dict[str, str] | None = None) -> dict[str, object]:
    app, calls = typer.Typer(), []

    @app.command()
    @with_options
    def command(context: typer.Context, name: Annotated[str, typer.Argument()], group: Group) -> None:
        """Does something."""
        calls.append({"name": name, "group": group, "given": on_command_line(context)})

    result = CliRunner().invoke(app, arguments, env=env)
    return calls[0] if calls else {"exit_code": result.exit_code}


def test_the_command_gets_a_dataclass_with_the_declared_defaults() -> None:
    called = call("x")
    assert called["name"] == "x"
    assert called["group"] == Group(drain_timeout=30.0, start_wait=5.0, kind="a", quiet=False)


def test_names_and_variables_come_from_the_field_or_from_its_option() -> None:
    variables = {"TRITONEMBED_DRAIN_TIMEOUT": "2", "TRITONEMBED_QUIET": "1", "TRITONEMBED_KIND": "b"}
    group = call("x", "--start-wait", "7", "--sort", "b", env=variables)["group"]
    assert group == Group(drain_timeout=2.0, start_wait=7.0, kind="b", quiet=True)
    assert call("x", env=variables)["group"].kind == "a"  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [["--drain-timeout", "0"], ["--kind", "c"], ["--no-quiet"]])
def test_limits_and_choices_hold(wrong: list[str]) -> None:
    assert call("x", *wrong) == {"exit_code": 2}


def test_arguments_on_the_command_line_are_distinguished_from_variables_and_defaults() -> None:
    given = call("x", "--kind", "b", env={"TRITONEMBED_DRAIN_TIMEOUT": "2"})["given"]
    assert given == {"name": "name", "kind": "--kind"}


def test_a_mark_finds_its_fields() -> None:
    assert marked(Group, "a mark") == ["drain_timeout"]
