"""The commands of `tritonembed-bench`. Each imports its implementation when it runs: some imports take seconds."""

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from tritonembed_manager.commands.options import with_options
from tritonembed_manager.server.environment import import_grpc_quietly
from tritonembed_perf.settings import PASSES_ON, PLAIN, AnalyzerSettings, CompareSettings, OverheadSettings, RunSettings

app = typer.Typer(name="tritonembed-bench", help="Measures embedding servers.", no_args_is_help=True, **PLAIN)


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


def run(settings: RunSettings) -> None:
    """Measure a running server: closed loop, or open loop with --rate.

    Every answer is checked. Exit code 1: a wrong vector, or no answer at all. Ctrl-C shows what was measured so far.
    """
    settings.check()
    import_grpc_quietly()
    from tritonembed_perf.run import measure_server

    measure_server(settings)


def compare(settings: CompareSettings) -> None:
    """Measure this project and its peers on this machine: same model, same loads, one after the other.

    Each peer is swept over its main settings first, and measured with its best. Exit code 1: one of them answered
    wrongly.
    """
    from tritonembed_perf.compare.contest import compare_peers

    compare_peers(settings)


def overhead(settings: OverheadSettings, context: typer.Context) -> None:
    """Where a request's time goes, stage by stage, from Triton's metrics and the engine's.

    What follows `--` are options of `tritonembed-manager replica`, for the server that is started.
    """
    settings.check(context.args)
    from tritonembed_perf.overhead import divide_time

    divide_time(settings, context.args)


def perf_analyzer(settings: AnalyzerSettings, context: typer.Context) -> None:
    """Measure with NVIDIA's perf_analyzer: texts of exact length, against Triton and through the manager.

    Without --server and --manager both are started; what follows `--` are options for them, such as --replicas 2.
    """
    from tritonembed_perf.perf_analyzer import analyze

    analyze(settings, context.args)


for measuring in (run, compare):
    app.command()(with_options(measuring, variables=False))
for starting in (overhead, perf_analyzer):
    app.command(context_settings=PASSES_ON)(with_options(starting, variables=False))
