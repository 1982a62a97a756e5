"""The options that several commands share, each also a TRITONEMBED_… environment variable."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DeviceChoice(str, Enum):
    """`--device`."""

    cpu = "cpu"
    cuda = "cuda"


class ExecutorChoice(str, Enum):
    """`--executor`."""

    auto = "auto"
    direct = "direct"
    scheduler = "scheduler"


class ControlModeChoice(str, Enum):
    """`--model-control-mode`."""

    none = "none"
    poll = "poll"
    explicit = "explicit"


RENDER_PARAMETERS = (
    "device",
    "tokenizer_instances",
    "replicas",
    "gpus",
    "tensor_parallel_size",
    "max_batch_tokens",
    "executor",
    "queue_limits",
    "reference",
    "no_reference",
    "deterministic",
)
"""What shapes a repository, beside the model and vLLM's arguments."""

MODEL_HELP = "Name on the Hugging Face hub, or a folder."

DeviceOption = Annotated[
    DeviceChoice | None,
    typer.Option("--device", envvar="TRITONEMBED_DEVICE", help="Where the model runs; by default what is there."),
]
TokenizerInstances = Annotated[
    int | None,
    typer.Option(
        "--tokenizer-instances",
        "--workers",
        envvar=["TRITONEMBED_TOKENIZER_INSTANCES", "TRITONEMBED_WORKERS"],
        min=1,
        help="Tokenizer instances on the CPU; by default 8 beside a GPU, 2 without one, at most one a core.",
    ),
]
QueueLimits = Annotated[
    bool | None,
    typer.Option(
        "--queue-limits/--no-queue-limits",
        envvar="TRITONEMBED_QUEUE_LIMITS",
        help="Bounded queues, priorities and deadlines in Triton; without them bursts are not held up by its batcher. "
        "By default beside a GPU; `serve`, which bounds what it lets in, has none.",
        show_default=False,
    ),
]
Mps = Annotated[
    bool,
    typer.Option(
        "--mps/--no-mps",
        envvar="TRITONEMBED_MPS",
        help="NVIDIA's MPS, where it is installed: replicas that share a GPU run at the same moment.",
    ),
]
Replicas = Annotated[
    int, typer.Option("--replicas", envvar="TRITONEMBED_REPLICAS", min=1, help="Embedder replicas a GPU.")
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", envvar="TRITONEMBED_GPUS", help="GPU numbers such as 0,1; by default every GPU."),
]
TensorParallelSize = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size", envvar="TRITONEMBED_TENSOR_PARALLEL_SIZE", min=1, help="GPUs that share one replica."
    ),
]
MaxBatchTokens = Annotated[
    int | None,
    typer.Option("--max-batch-tokens", envvar="TRITONEMBED_MAX_BATCH_TOKENS", min=1, help="Tokens in one batch."),
]
Force = Annotated[
    bool, typer.Option("--force", envvar="TRITONEMBED_FORCE", help="Also into a folder that holds something else.")
]
Executor = Annotated[
    ExecutorChoice | None,
    typer.Option("--executor", envvar="TRITONEMBED_EXECUTOR", help="How the model runs; by default auto."),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        envvar="TRITONEMBED_REFERENCE",
        exists=True,
        dir_okay=False,
        resolve_path=True,
        help="Hold the vectors against these of sentence-transformers (.npz: texts, vectors), not against "
        "transformers in float32.",
    ),
]
NoReference = Annotated[
    bool,
    typer.Option(
        "--no-reference", envvar="TRITONEMBED_NO_REFERENCE", help="Serve without holding the vectors against anything."
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        envvar="TRITONEMBED_DETERMINISTIC",
        help="The same text gives the same bits whatever else is served: one sentence a batch; costs throughput.",
    ),
]

ModelRepository = Annotated[
    Path | None,
    typer.Option(
        "--model-repository",
        envvar="TRITONEMBED_MODEL_REPOSITORY",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="Run this rendered repository as it is.",
    ),
]
Host = Annotated[str, typer.Option("--host", envvar="TRITONEMBED_HOST", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", envvar="TRITONEMBED_PORT", min=1, max=65535, help="gRPC port.")]
HttpPort = Annotated[
    int, typer.Option("--http-port", envvar="TRITONEMBED_HTTP_PORT", min=1, max=65535, help="HTTP port.")
]
MetricsPort = Annotated[
    int, typer.Option("--metrics-port", envvar="TRITONEMBED_METRICS_PORT", min=1, max=65535, help="Prometheus port.")
]
ModelControlMode = Annotated[
    ControlModeChoice,
    typer.Option(
        "--model-control-mode",
        envvar="TRITONEMBED_MODEL_CONTROL_MODE",
        help="Triton's: none, poll, or explicit (load and unload by request; all are loaded at the start).",
    ),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        "--work-dir",
        envvar="TRITONEMBED_WORK_DIR",
        file_okay=False,
        resolve_path=True,
        help="Folder for the rendered repository; by default a temporary one.",
    ),
]
Tritonserver = Annotated[
    Path | None,
    typer.Option(
        "--tritonserver",
        envvar="TRITONEMBED_TRITONSERVER",
        help="The server's program; by default on PATH, in /opt/tritonserver, or in the nvidia-pytriton wheel.",
    ),
]
StartupTimeout = Annotated[
    float, typer.Option("--startup-timeout", envvar="TRITONEMBED_STARTUP_TIMEOUT", min=1, help="Seconds until READY.")
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout", envvar="TRITONEMBED_DRAIN_TIMEOUT", min=1, help="Seconds for what is in flight at the end."
    ),
]
LogVerbose = Annotated[
    bool, typer.Option("--log-verbose", envvar="TRITONEMBED_LOG_VERBOSE", help="Show all of Triton's log.")
]
DisableLogRequest = Annotated[
    bool,
    typer.Option(
        "--disable-log-request",
        envvar="TRITONEMBED_DISABLE_LOG_REQUEST",
        help="With --log-verbose: leave out what Triton logs for each request. Otherwise requests are never logged.",
    ),
]
