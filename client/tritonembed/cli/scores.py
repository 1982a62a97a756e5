"""`tritonembed rerank` and `tritonembed classify`: texts in, the best first or with their labels out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from tritonembed import EmbeddingClient
from tritonembed_protocol.printable import printable
from tritonembed_protocol.types import Activation, ScoreTruncate

from .failures import failures
from .options import BatchSize, Connection, addresses, option, wait_until_started, with_connection
from .sources import choose_source

Texts = Annotated[list[str] | None, typer.Argument(help="Texts to score.")]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", "-i", help="A .txt (one text per line), .jsonl, .csv or .parquet file; - for lines of stdin."
    ),
]
Column = Annotated[str, option("--column", "Field of a .jsonl, .csv or .parquet file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Truncate = Annotated[
    ScoreTruncate | None,
    option("--truncate", "Which end of a long text is cut off; with NONE it is an error.", show_default="the model's"),
]
ScoreActivation = Annotated[
    Activation | None, option("--activation", "What makes scores of logits.", show_default="the model's")
]
Servers = Annotated[
    list[str] | None,
    option(
        "--server",
        "A server, instead of --host and --port; repeat it for several servers. grpcs://HOST:PORT encrypts.",
        metavar="HOST:PORT",
    ),
]


@with_connection
def rerank(
    connection: Connection,
    query: Annotated[str, typer.Argument(help="What the texts are ranked for.")],
    texts: Texts = None,
    source: Input = None,
    column: Column = "text",
    top_n: Annotated[
        int | None, option("--top-n", "Show only this many texts, the best.", min=1, show_default="all")
    ] = None,
    instruction: Annotated[
        str | None, option("--instruction", "What counts as relevant; needs a model with a template.")
    ] = None,
    truncate: Truncate = None,
    activation: ScoreActivation = None,
    as_json: AsJson = False,
    servers: Servers = None,
    batch_size: BatchSize = 64,
) -> None:
    """Show texts with their scores for a query, the best first."""
    chosen = list(choose_source(source, column, list(texts or [])).texts())
    options: dict[str, Any] = {"instruction": instruction, "truncate": truncate, "activation": activation}
    with _ready(connection, servers, options) as client:
        ranking = client.rerank(query, chosen, top_n=top_n, batch_size=batch_size, **options)
    for number, score in ranking:
        if as_json:
            typer.echo(json.dumps({"index": number, "score": score, "text": chosen[number]}, ensure_ascii=False))
        else:
            typer.echo(f"{score:10.4f}  {printable(chosen[number])}")


@with_connection
def classify(
    connection: Connection,
    texts: Texts = None,
    source: Input = None,
    column: Column = "text",
    truncate: Truncate = None,
    activation: ScoreActivation = None,
    as_json: AsJson = False,
    servers: Servers = None,
    batch_size: BatchSize = 64,
) -> None:
    """Show the labels of texts with their scores, the highest first."""
    chosen = list(choose_source(source, column, list(texts or [])).texts())
    options: dict[str, Any] = {"truncate": truncate, "activation": activation}
    with _ready(connection, servers, options) as client:
        result = client.classify(chosen, batch_size=batch_size, **options)
    for text, scores in zip(chosen, result.scores.tolist(), strict=True):
        labels = sorted(zip(result.labels, scores, strict=True), key=lambda pair: -pair[1])
        if as_json:
            typer.echo(json.dumps({"text": text, "labels": dict(labels)}, ensure_ascii=False))
        else:
            typer.echo(f"{', '.join(f'{label} {score:.4f}' for label, score in labels)}  {printable(text)}")


@contextmanager
def _ready(connection: Connection, servers: list[str] | None, options: dict[str, Any]) -> Iterator[EmbeddingClient]:
    """The client, once a server has started. Puts the time that is left into the options."""
    with failures(), connection.open(addresses(servers or [])) as client:
        options["timeout"] = wait_until_started(client, ", ".join(servers or [connection.target]), connection.timeout)
        yield client
