"""The application: its commands, and the exit code and message of every failure."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import version as installed_version
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from tritonembed_protocol.printable import printable

from .connection import Connection, with_connection
from .embed import ARCTIC, embed
from .failures import CommandError
from .scores import classify, rerank
from .status import health, info

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tritonembed {installed_version('tritonembed')}")
        raise typer.Exit


@app.callback()
@with_connection
def connect(
    connection: Connection,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text embeddings through NVIDIA Triton.

    Options of the connection go before or after the command's name.
    """


app.command(epilog=ARCTIC)(embed)
app.command()(rerank)
app.command()(classify)
app.command()(health)
app.command()(info)


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 for a failure, 2 for bad usage, 128 + its number for a signal."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - else messages would go to standard output
    # An exception lets a half-written file be removed; the signal's default does not. An ignored signal stays ignored,
    # as nohup needs it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    try:
        code = app(arguments, standalone_mode=False, prog_name="tritonembed")
    except CommandError as error:
        message, code = str(error), error.exit_code
    except ModuleNotFoundError:
        raise  # main() names the extra to install
    except Exception as error:
        # Typer's own errors have no base class that is public in all its versions; this method is their interface.
        known: Any = error
        if hasattr(error, "format_message"):
            message, code = known.format_message(), known.exit_code
        else:
            message, code = f"unexpected {type(error).__name__}: {error}", 1
    else:
        sys.exit(code or 0)
    # A server's message and a file's name may hold line breaks and escape sequences.
    print(f"tritonembed: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(128 + number)
