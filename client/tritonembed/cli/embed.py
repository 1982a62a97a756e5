"""`tritonembed embed`: texts in, embeddings out."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from tritonembed import EmbeddingClient
from tritonembed._results import CommonSpace
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE, EmbeddingType, Priority, Truncate

from .failures import UsageError, failures
from .options import (
    BatchSize,
    Connection,
    Dimensions,
    InputTypeOption,
    Normalize,
    Policy,
    PromptName,
    addresses,
    option,
    wait_until_started,
    with_connection,
)
from .progress import EmbeddingBar
from .sinks import Sink, open_sink
from .sources import Source, choose_source

# Arctic Inference's documented client has these options; its scripts run here, too.
ARCTIC = (
    "For scripts of Arctic Inference's client: --temperature, --top-p, --max-tokens and, without sparse outputs, "
    "--top-k are accepted and change nothing, because an embedding has no sampling; --lora-name is as --model, because "
    "`serve` has an adapter as a model of its own."
)


@with_connection
def embed(
    connection: Connection,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to embed.")] = None,
    more_texts: Annotated[list[str] | None, typer.Option("--prompt", help="One more text; repeatable.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            "-f",
            help="A .txt (one text per line), .jsonl, .csv or .parquet file; - for lines of stdin.",
        ),
    ] = None,
    column: Annotated[str, option("--column", "Field of a .jsonl, .csv or .parquet file.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .npy, .jsonl or .parquet file.", show_default="terminal")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an --output that exists already.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Write JSON lines to the terminal as they come.")] = False,
    input_type: InputTypeOption = None,
    prompt_name: PromptName = None,
    prompt_text: Annotated[
        str | None, option("--prompt-text", "Prepend this to every text, instead of a prompt of the model.")
    ] = None,
    instruction: Annotated[
        str | None,
        option("--instruction", "The task of the texts, which are queries; needs a model with a template."),
    ] = None,
    truncate: Annotated[
        Truncate | None,
        option(
            "--truncate",
            "Which end of a long text is cut off. With NONE a long text is an error; CHUNK embeds it in chunks, and "
            "takes their mean.",
            show_default="the model's",
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None, option("--chunk-tokens", "Most tokens of a chunk.", min=1, show_default="the model's maximum")
    ] = None,
    chunk_overlap: Annotated[
        int | None,
        option("--chunk-overlap", "Tokens that a chunk shares with the chunk before.", min=0, show_default="0"),
    ] = None,
    dimensions: Dimensions = None,
    embedding_type: Annotated[
        EmbeddingType, option("--embedding-type", "Type of a vector's numbers.")
    ] = DEFAULT_OUTPUT_TYPE,
    normalize: Normalize = None,
    priority: Annotated[Priority, option("--priority", "Interactive goes ahead in the server's queue.")] = "bulk",
    embedding_space: Annotated[
        str | None,
        option("--embedding-space", "Refuse vectors of any other model or precision; `info` shows the server's."),
    ] = None,
    adapter: Annotated[
        str | None, option("--adapter", "A LoRA adapter of the model, whose vectors and prompts are used.")
    ] = None,
    outputs: Annotated[
        str | None,
        option(
            "--outputs",
            "What to compute: one or more of dense, sparse and multi_vector, with commas. Files: .jsonl.",
            metavar="NAMES",
            show_default="the model's",
        ),
    ] = None,
    top_k: Annotated[
        int | None, option("--top-k", "For sparse: keep only this many weights per text.", min=1, show_default="all")
    ] = None,
    sparse_threshold: Annotated[
        float | None,
        option("--sparse-threshold", "For sparse: keep only weights above this number.", min=0, show_default="0"),
    ] = None,
    return_tokens: Annotated[
        bool, typer.Option("--return-tokens", help="For sparse: show tokens instead of their ids.")
    ] = False,
    servers: Annotated[
        list[str] | None,
        option(
            "--server",
            "A server, instead of --host and --port; repeat it for several servers. grpcs://HOST:PORT encrypts.",
            metavar="HOST:PORT",
        ),
    ] = None,
    policy: Policy = "least_loaded",
    batch_size: BatchSize = 64,
    max_in_flight: Annotated[int, option("--max-in-flight", "Outstanding requests per server.", min=1)] = 8,
    progress: Annotated[
        bool | None, option("--progress/--no-progress", "Progress bar.", show_default="writing a file")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", hidden=True)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", hidden=True)] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", hidden=True)] = None,
    lora_name: Annotated[str | None, typer.Option("--lora-name", hidden=True)] = None,
) -> None:
    """Embed texts of the command line or of a file, and print or write their vectors."""
    if lora_name is not None:
        connection = connection.of_model(lora_name)
    sparse = "sparse" in (outputs or "")
    if any(option is not None for option in (temperature, top_p, None if sparse else top_k, max_tokens)):
        typer.echo("tritonembed: an embedding has no sampling: --temperature, --top-p, … change nothing", err=True)
    options: dict[str, Any] = {
        "input_type": input_type,
        "prompt_name": prompt_name,
        "prompt": prompt_text,
        "instruction": instruction,
        "truncate": truncate,
        "chunk_tokens": chunk_tokens,
        "chunk_overlap": chunk_overlap,
        "dimensions": dimensions,
        "embedding_type": embedding_type,
        "normalize": normalize,
        "priority": priority,
        "embedding_space": embedding_space,
        "adapter": adapter,
        "outputs": outputs,
        "top_k": top_k if sparse else None,
        "sparse_threshold": sparse_threshold,
        "return_tokens": return_tokens,
        "batch_size": batch_size,
    }
    if outputs not in (None, "dense") and output is not None and output.suffix.lower() != ".jsonl":
        raise UsageError("--outputs: only .jsonl files hold sparse weights and vectors of tokens")
    chosen = choose_source(source, column, [*(texts or []), *(more_texts or [])])
    shown = progress if progress is not None else output is not None and sys.stderr.isatty()
    timeout = connection.timeout
    opened = connection.open(addresses(servers or []), policy=policy, max_in_flight=max_in_flight)
    with failures(), opened as client, open_sink(output, stream, force=force) as sink:
        options["timeout"] = wait_until_started(client, ", ".join(servers or [connection.target]), timeout)
        _run(client, chosen, sink, options, shown, output)


def _run(
    client: EmbeddingClient, source: Source, sink: Sink, options: dict[str, Any], shown: bool, output: Path | None
) -> None:
    start = perf_counter()
    texts = tokens = 0
    space = CommonSpace()
    with EmbeddingBar(source, shown) as bar, closing(client.iter_embed(source.texts(), **options)) as results:
        for result in results:
            space.add(result.embedding_space)
            sink.write(result)
            texts += len(result.num_tokens)
            tokens += int(result.num_tokens.sum())
            bar.update(texts)
    sink.finish(lambda: client.embed([], **options))
    if output is not None:
        seconds = perf_counter() - start
        summary = f"{texts} texts, {tokens} tokens in {seconds:.1f} s ({texts / seconds:.0f} texts/s): {output}"
        summary += f", embedding space {space.found}" if space.found else ""
        typer.echo(f"tritonembed: {summary}", err=True)
