"""The command line: its commands, `health` and `info`, and the exit code and message of every failure."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from importlib.metadata import version as installed_version
from time import perf_counter
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from tritonembed import ModelInfo, ModelNotFoundError, ServerInfo, TensorInfo, TritonEmbedError
from tritonembed_protocol.printable import printable

from .embed import ARCTIC, embed
from .failures import CommandError, failures
from .options import Connection, with_connection
from .scores import classify, rerank

DEFAULT_TIMEOUT = 5.0
"""Seconds: a probe must not wait for ever."""


@with_connection
def health(connection: Connection) -> None:
    """Exit with 0 if an inference succeeds now, with 1 if not."""
    timeout = DEFAULT_TIMEOUT if connection.timeout is None else connection.timeout
    with connection.open() as client:
        start = perf_counter()
        did = "embedded a sentence"
        try:
            try:
                client.embed(["ready"], timeout=timeout)
            except ModelNotFoundError:
                # The server may have nothing but a reranker or classifier.
                did = "scored a sentence"
                client.score("ready", ["ready"], timeout=timeout)
        except TritonEmbedError as error:
            raise CommandError(f"{connection.target} is not ready: {type(error).__name__}: {error}") from error
        milliseconds = 1000 * (perf_counter() - start)
    with failures():
        typer.echo(f"{connection.target} is ready: it {did} in {milliseconds:.1f} ms")


@with_connection
def info(
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Show the server, its version and the models behind the embeddings."""
    timeout = DEFAULT_TIMEOUT if connection.timeout is None else connection.timeout
    with failures(), connection.open() as client:
        server = client.info(timeout=timeout)
    with failures():
        _show(server, connection.target, as_json)


def _show(server: ServerInfo, target: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(server), indent=2))
        return
    typer.echo(printable(f"server      {server.name} {server.version} at {target}"))
    if server.dimensions is not None:
        typer.echo(f"dimensions  {server.dimensions}")
    if server.embedding_space is not None:
        typer.echo(printable(f"space       {server.embedding_space}"))
    if server.quantization_quality is not None:
        typer.echo(f"int8        keeps {server.quantization_quality:.4f} of the ten nearest of its calibration texts")
    for model in server.models:
        typer.echo(printable(f"model       {_model(model)}"))


def _model(model: ModelInfo) -> str:
    tensors = f"{', '.join(map(_tensor, model.inputs))} -> {', '.join(map(_tensor, model.outputs))}"
    return f"{model.name} (version {', '.join(model.versions)}, up to {model.max_batch_size} per request): {tensors}"


def _tensor(tensor: TensorInfo) -> str:
    return f"{tensor.name} {tensor.datatype} [{','.join(map(str, tensor.shape))}]"


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


def _add_commands() -> None:
    """Add the commands that other packages of this distribution bring."""
    try:
        entries = distribution("tritonembed").entry_points.select(group="tritonembed.commands")
    except PackageNotFoundError:
        return  # a checkout that is not installed
    for entry in entries:
        loaded = entry.load()
        app.command(entry.name, epilog=sys.modules[loaded.__module__].EPILOG)(loaded)


_add_commands()


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
