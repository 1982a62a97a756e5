"""`tritonembed health` and `tritonembed info`."""

from __future__ import annotations

import json
from dataclasses import asdict
from time import perf_counter
from typing import Annotated

import typer

from tritonembed import ModelInfo, ModelNotFoundError, ServerInfo, TensorInfo, TritonEmbedError
from tritonembed_protocol.printable import printable

from .connection import Connection, with_connection
from .failures import CommandError, failures

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
                # It may have a reranker or classifier alone.
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
    for model in server.models:
        typer.echo(printable(f"model       {_model(model)}"))


def _model(model: ModelInfo) -> str:
    tensors = f"{', '.join(map(_tensor, model.inputs))} -> {', '.join(map(_tensor, model.outputs))}"
    return f"{model.name} (version {', '.join(model.versions)}, up to {model.max_batch_size} per request): {tensors}"


def _tensor(tensor: TensorInfo) -> str:
    return f"{tensor.name} {tensor.datatype} [{','.join(map(str, tensor.shape))}]"
