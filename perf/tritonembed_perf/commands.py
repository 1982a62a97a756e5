"""The commands of `tritonembed-bench`."""

import typer

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


@app.callback()
def _commands() -> None:
    """Measures embedding servers."""


app.command()(run)
app.command()(compare)
app.command(context_settings=PASSES_ON)(overhead)
app.command(context_settings=PASSES_ON)(perf_analyzer)
