"""The command lines of scripts: a function per measurement, whose parameters are its options."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.cli import run_program
from tritonembed_perf.reports import check_output, describe_script, write_report
from tritonembed_perf.settings import LOADS_HELP, PASSES_ON, PLAIN

Model = Annotated[str, Argument(help="Folder of the model.")]
Loads = Annotated[str, Option(help=LOADS_HELP)]
Json = Annotated[Path | None, Option("--json", help="Write the results here.")]


def run_script(name: str, doc: str, *measurements: Callable[..., dict[str, Any]]) -> None:
    """Run the measurement that is named on the command line, without a name if there is only one.

    name: of the script. doc: its module's. A measurement prints figures as they come, and returns them for the report,
    which --json writes. What follows `--` is in its context, for a server that it starts.
    """
    app = typer.Typer(help=doc.partition("\n")[0], **PLAIN)
    for measure in measurements:
        app.command(context_settings=PASSES_ON)(_with_report(name, measure))
    run_program(name, lambda: app)


def _with_report(name: str, measure: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    @functools.wraps(measure)
    def run(json_path: Path | None, **given: Any) -> None:
        check_output("--json", json_path)
        report = describe_script(name)
        write_report(json_path, report | measure(**given))

    signature = inspect.signature(measure)
    json = inspect.Parameter("json_path", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Json)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), json])  # type: ignore[attr-defined]
    run.__annotations__ = {**measure.__annotations__, "json_path": Json}
    return run


def output_file(text: str) -> Path:
    """A file that can be written, as the type of an argparse option."""
    import argparse

    try:
        check_output("", Path(text))
    except LoadError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
    return Path(text)
