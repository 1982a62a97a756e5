"""`tritonembed bulk`: its options. What they start is imported when it runs: every other command reads them, too."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tritonembed.cli.options import (
    BatchSize,
    Connection,
    Dimensions,
    InputTypeOption,
    Normalize,
    Policy,
    PromptName,
    addresses,
    option,
    with_connection,
)
from tritonembed_bulk import PART_ROWS, Device, Format, LogFormat
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE, EmbeddingType, Truncate

Pool = Literal["mean"]

EPILOG = (
    "With --server a running fleet computes, and --model is the name of its served model. Without --server, --model is "
    "a folder or a name on the hub, which Ray actors load: one per GPU, or one on all CPUs."
)
"""The end of `--help`: the two ways to compute."""


@with_connection
def bulk(
    connection: Connection,
    source: Annotated[
        str,
        typer.Argument(
            help="A file or folder of .parquet, .jsonl or .csv files, a folder of a Hugging Face data set, or a Lance "
            "table, NAME.lance; also s3:// and gs://. Or postgresql://…#TABLE, or postgresql://… with --query."
        ),
    ],
    sink: Annotated[
        str,
        typer.Argument(
            help="A folder for the vectors, or a Lance table, NAME.lance; also s3:// and gs://. Or "
            "postgresql://…#TABLE; qdrant:http://…#COLLECTION."
        ),
    ],
    query: Annotated[str | None, option("--query", "Of PostgreSQL as the source: SELECT …")] = None,
    sink_format: Annotated[Format, option("--format", "Files of the sink.")] = "parquet",
    state: Annotated[
        str | None, option("--state", "Folder of a job's records, if the sink is a database; also s3:// and gs://.")
    ] = None,
    servers: Annotated[
        list[str] | None,
        option(
            "--server",
            "A server of the fleet; repeat it for several. grpcs://HOST:PORT encrypts.",
            metavar="HOST:PORT",
        ),
    ] = None,
    text_column: Annotated[str, option("--text-column", "Column of the texts.")] = "text",
    template: Annotated[
        str | None,
        option("--template", r'Text of several columns, such as "{title}\n{body}"; instead of --text-column.'),
    ] = None,
    id_column: Annotated[
        str | None, option("--id-column", "Column that names rows, such as in the error table.")
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Write the texts beside their vectors.")] = False,
    chunk: Annotated[
        str | None,
        option("--chunk", "Divide long texts: a row per chunk, with its place.", metavar="tokens=512,overlap=64"),
    ] = None,
    pool: Annotated[Pool | None, option("--pool", "Of chunks: one vector per text, their mean.")] = None,
    input_type: InputTypeOption = None,
    prompt_name: PromptName = None,
    truncate: Annotated[
        Truncate | None,
        option(
            "--truncate",
            "Which end of a long text is cut off. With NONE a long text goes to the error table.",
            show_default="the model's",
        ),
    ] = None,
    dimensions: Dimensions = None,
    embedding_type: Annotated[
        EmbeddingType, option("--embedding-type", "Type of a vector's numbers; ubinary packs bits.")
    ] = DEFAULT_OUTPUT_TYPE,
    normalize: Normalize = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output: compute what is missing.")] = False,
    part_rows: Annotated[int, option("--part-rows", "Most rows of an output part.", min=1, max=1 << 20)] = PART_ROWS,
    max_errors: Annotated[
        int | None,
        option("--max-errors", "Stop when more rows can't be embedded.", min=0, show_default="no limit"),
    ] = None,
    ray_address: Annotated[
        str | None,
        option("--ray-address", "A Ray cluster, or auto inside one.", show_default="Ray in this process"),
    ] = None,
    workers: Annotated[
        int | None,
        option("--workers", "Most actors at a time.", min=1, show_default="one per GPU; of a fleet's clients, 1"),
    ] = None,
    cpus_per_worker: Annotated[
        float | None, option("--cpus-per-worker", "CPUs that an actor takes.", min=0, show_default="all; on a GPU, 1")
    ] = None,
    device: Annotated[Device, option("--device", "Where --model runs; auto: GPUs if Ray has any.")] = "auto",
    revision: Annotated[str | None, option("--revision", "Revision of a --model on the hub.")] = None,
    dtype: Annotated[
        str | None, option("--dtype", "Precision of --model.", show_default="float32 on a CPU, bfloat16 on a GPU")
    ] = None,
    executor: Annotated[str, option("--executor", "What runs --model; see the engine's settings.")] = "auto",
    reference: Annotated[
        bool,
        option("--reference/--no-reference", "Compare --model's vectors with transformers' when it is loaded."),
    ] = True,
    policy: Policy = "least_loaded",
    batch_size: BatchSize = 64,
    max_in_flight: Annotated[int, option("--max-in-flight", "Requests per server and worker.", min=1)] = 8,
    price_per_hour: Annotated[
        float | None, option("--price-per-hour", "Of all machines together, to show the cost.", min=0)
    ] = None,
    log_format: Annotated[LogFormat, option("--log-format", "Of the progress on standard error.")] = "text",
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard; needs ray[default].")] = False,
) -> None:
    """Embed a data set, on a laptop or on a Ray cluster, into files with the vectors and the other columns."""
    from tritonembed_bulk import starting

    with starting.refusals():
        request = starting.request_of(
            chunk,
            pool,
            truncate,
            input_type=input_type,
            prompt_name=prompt_name,
            dimensions=dimensions,
            embedding_type=embedding_type,
            normalize=normalize,
        )
        chunks = chunk is not None and pool is None
        output = starting.Output(sink, sink_format, state, id_column)
        compute: starting.Compute
        if servers:
            fleet = starting.Fleet(connection, addresses(servers), policy, batch_size, max_in_flight)
            compute = fleet.compute(request, chunks, output.ledger)
        else:
            model = starting.Model(connection.model, revision, dtype, executor, reference)
            compute = model.compute(request, chunks, output.ledger)
        columns = starting.columns_of(text_column, template, id_column, keep_text=keep_text)
        rows = starting.source_of(source, query, id_column, part_rows)
        job = starting.job_of(rows, output, compute, columns, part_rows, {**request, "chunks": chunks})
        cluster = starting.Cluster(ray_address, workers, cpus_per_worker, device, dashboard)
        starting.run_job(job, cluster, starting.Limits(max_errors, price_per_hour, log_format), resume=resume)
