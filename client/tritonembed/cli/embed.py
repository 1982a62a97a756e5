"""`tritonembed embed`: texts in, embeddings out."""

from __future__ import annotations

import sys
from contextlib import closing
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from tritonembed._client import EmbeddingClient

from .connection import Connection, option, with_connection
from .failures import UsageError, failures
from .progress import ProgressBar
from .sinks import Sink, open_sink
from .sources import Arguments, Source, open_source


class InputTypeName(str, Enum):
    """The values of --input-type."""

    query = "query"
    passage = "passage"


class TruncateName(str, Enum):
    """The values of --truncate."""

    END = "END"
    START = "START"
    NONE = "NONE"


class EmbeddingTypeName(str, Enum):
    """The values of --embedding-type."""

    float = "float"
    float16 = "float16"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


class PriorityName(str, Enum):
    """The values of --priority."""

    interactive = "interactive"
    bulk = "bulk"


class PolicyChoice(str, Enum):
    """The values of --policy."""

    least_loaded = "least_loaded"
    round_robin = "round_robin"
    random = "random"


# Arctic Inference's documented client has these; its scripts shall run, and say what they no longer do.
ARCTIC = (
    "For scripts of Arctic Inference's client: --temperature, --top-p, --top-k and --max-tokens are accepted and "
    "change nothing, an embedding has no sampling; --lora-name is an error, adapters are not served yet."
)


@with_connection
def embed(
    connection: Connection,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to embed.")] = None,
    more_texts: Annotated[list[str] | None, typer.Option("--prompt", help="One more text; repeatable.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", "-f", help="A .txt (a line a text), .jsonl, .csv or .parquet file; - for lines of stdin."
        ),
    ] = None,
    column: Annotated[str, option("--column", "Field of a .jsonl, .csv or .parquet file.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .npy, .jsonl or .parquet file.", show_default="terminal")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write JSON lines to the terminal as they come.")] = False,
    input_type: Annotated[InputTypeName | None, option("--input-type", "Prepends the model's prompt.")] = None,
    prompt_name: Annotated[str | None, option("--prompt-name", "Name of the model's prompt to prepend.")] = None,
    prompt_text: Annotated[
        str | None, option("--prompt-text", "Prepended to every text, instead of a prompt of the model.")
    ] = None,
    truncate: Annotated[
        TruncateName | None, option("--truncate", "End of a long text that is cut.", show_default="the model's")
    ] = None,
    dimensions: Annotated[
        int | None, option("--dimensions", "First so many dimensions.", min=1, show_default="the model's")
    ] = None,
    embedding_type: Annotated[
        EmbeddingTypeName, option("--embedding-type", "Numbers of a vector.")
    ] = EmbeddingTypeName.float,
    normalize: Annotated[
        bool | None, option("--normalize/--no-normalize", "Length 1 or not.", show_default="the model's")
    ] = None,
    priority: Annotated[
        PriorityName, option("--priority", "Interactive goes ahead in the server's queue.")
    ] = PriorityName.bulk,
    servers: Annotated[
        list[str] | None,
        option("--server", "One of several servers, instead of --host and --port; repeatable.", metavar="HOST:PORT"),
    ] = None,
    policy: Annotated[
        PolicyChoice, option("--policy", "Which --server gets the next request.")
    ] = PolicyChoice.least_loaded,
    batch_size: Annotated[int, option("--batch-size", "Texts a request.", min=1, max=1024)] = 64,
    max_in_flight: Annotated[int, option("--max-in-flight", "Requests at once, a server.", min=1)] = 8,
    progress: Annotated[
        bool | None, option("--progress/--no-progress", "Progress bar.", show_default="writing a file")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", hidden=True)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", hidden=True)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", hidden=True)] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", hidden=True)] = None,
    lora_name: Annotated[str | None, typer.Option("--lora-name", hidden=True)] = None,
) -> None:
    """Embed texts given here or read from a file, and print or write their vectors."""
    if lora_name is not None:
        raise UsageError("--lora-name: adapters are not served yet")
    if any(option is not None for option in (temperature, top_p, top_k, max_tokens)):
        typer.echo("tritonembed: an embedding has no sampling: --temperature, --top-p, … change nothing", err=True)
    options = {
        "input_type": input_type and input_type.value,
        "prompt_name": prompt_name,
        "prompt": prompt_text,
        "truncate": truncate and truncate.value,
        "dimensions": dimensions,
        "embedding_type": embedding_type.value,
        "normalize": normalize,
        "priority": priority.value,
        "batch_size": batch_size,
        "timeout": connection.timeout,
    }
    chosen = _source(source, column, [*(texts or []), *(more_texts or [])])
    shown = progress if progress is not None else output is not None and sys.stderr.isatty()
    opened = connection.open(_addresses(servers or []), policy=policy.value, max_in_flight=max_in_flight)
    with failures(), opened as client, open_sink(output, stream) as sink:
        _run(client, chosen, sink, options, shown, output)


def _addresses(servers: list[str]) -> list[str]:
    for server in servers:
        host, _, port = server.rpartition(":")
        # gRPC would take a port that is too large modulo 65536.
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise UsageError(f"--server is HOST:PORT, not {server}")
    return servers


def _source(path: str | None, column: str, texts: list[str]) -> Source:
    if path is not None and texts:
        raise UsageError("texts are given both as arguments and as --input: choose one")
    if path is not None:
        return open_source(path, column)
    if not texts:
        raise UsageError("no texts: give them as arguments, or a file with --input")
    return Arguments(texts)


def _run(
    client: EmbeddingClient, source: Source, sink: Sink, options: dict[str, Any], shown: bool, output: Path | None
) -> None:
    start = perf_counter()
    texts = tokens = 0
    with ProgressBar(source, shown) as bar, closing(client.iter_embed(source.texts(), **options)) as results:
        for result in results:
            sink.write(result)
            texts += len(result.num_tokens)
            tokens += int(result.num_tokens.sum())
            bar.update(texts)
    sink.finish(lambda: client.embed([], **options))
    if output is not None:
        seconds = perf_counter() - start
        summary = f"{texts} texts, {tokens} tokens in {seconds:.1f} s ({texts / seconds:.0f} texts/s): {output}"
        typer.echo(f"tritonembed: {summary}", err=True)
