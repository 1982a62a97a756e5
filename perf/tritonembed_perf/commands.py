"""The commands of `tritonembed-bench`."""

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from tritonembed_manager.commands.signature import with_options
from tritonembed_perf.compare.command import compare
from tritonembed_perf.overhead.command import overhead
from tritonembed_perf.perf_analyzer.command import perf_analyzer
from tritonembed_perf.run.command import run

# What follows `--` goes to the servers that a command starts.
PASSES_ON = {"allow_extra_args": True}

app = typer.Typer(
    name="tritonembed-bench",
    help="Measures embedding servers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tritonembed-bench {installed_version('tritonembed')}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Measures embedding servers."""


for measuring in (run, compare):
    app.command()(with_options(measuring, variables=False))
for starting in (overhead, perf_analyzer):
    app.command(context_settings=PASSES_ON)(with_options(starting, variables=False))
