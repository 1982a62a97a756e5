"""The options of `serve` that no other command has, each also a TRITONEMBED_… environment variable."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tritonembed_manager.engine_variables import variable


class AssignmentChoice(str, Enum):
    """`--gpu-assignment`."""

    dedicated = "dedicated"
    shared = "shared"


class PolicyChoice(str, Enum):
    """`--load-balancing`."""

    round_robin = "round_robin"
    random = "random"
    least_loaded = "least_loaded"


class LogFormatChoice(str, Enum):
    """`--log-format`."""

    text = "text"
    json = "json"


LAUNCH_PARAMETERS = (
    "replica_host",
    "start_port",
    "num_replicas",
    "num_gpus",
    "servers",
    "gpu_assignment",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "device",
    "tokenizer_instances",
    "max_batch_tokens",
    "executor",
    "queue_limits",
    "reference",
    "no_reference",
    "deterministic",
    "max_restarts",
    "restart_window",
    "mps",
    "tritonserver",
    "work_dir",
)
"""What shapes the servers that are launched: contradicts attaching."""
GPU_PARAMETERS = ("num_gpus", "gpu_assignment", "gpu_memory_utilization", "mps")
"""What contradicts a CPU."""


def _option(name: str, help: str, **limits: float) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, envvar=variable(name), help=help, **limits)  # type: ignore[arg-type]
    return option


Model = Annotated[
    str | None,
    _option("--model", "Name on the Hugging Face hub, or a folder; when attaching, the name that clients use for it."),
]
ReplicaHost = Annotated[str, _option("--replica-host", "Address on which launched servers listen.")]
StartPort = Annotated[
    int,
    _option("--start-port", "First port of launched servers, three each; ports in use are skipped.", min=1, max=65535),
]
NumReplicas = Annotated[int, _option("--num-replicas", "Replicas of the model, in all.", min=1)]
NumGpus = Annotated[int, _option("--num-gpus", "GPUs to use.", min=1)]
NumServers = Annotated[
    int | None, _option("--servers", "Triton servers to launch; by default one a GPU, or one on a CPU.", min=1)
]
GpuAssignment = Annotated[
    AssignmentChoice,
    _option(
        "--gpu-assignment", "dedicated: each server owns its GPUs; shared: every server has replicas on all of them."
    ),
]
GpuMemoryUtilization = Annotated[
    float, _option("--gpu-memory-utilization", "Part of a GPU's memory, divided among its replicas.", min=0.01, max=1.0)
]
LoadBalancing = Annotated[PolicyChoice, _option("--load-balancing", "Which server gets the next request.")]
HealthInterval = Annotated[float, _option("--health-interval", "Seconds between two checks of a server.", min=0.05)]
HealthTimeout = Annotated[float, _option("--health-timeout", "Seconds for the answer to a check.", min=0.05)]
ForwardTimeout = Annotated[
    float, _option("--forward-timeout", "Seconds for a request that came without a deadline.", min=0.001)
]
Workers = Annotated[
    int, _option("--workers", "Processes of the manager that share its ports (no threads of a server).", min=1, max=256)
]
MaxInFlight = Annotated[
    int, _option("--max-in-flight", "Requests at one time, in all; more are refused as overload.", min=1)
]
MaxInFlightPerServer = Annotated[
    int,
    _option(
        "--max-in-flight-per-server", "Requests at one time at one server; when all are full, more are refused.", min=1
    ),
]
MaxRestarts = Annotated[
    int, _option("--max-restarts", "Restarts of a server within --restart-window before it stays down.", min=0)
]
RestartWindow = Annotated[float, _option("--restart-window", "Seconds in which restarts are counted.", min=1)]
Server = Annotated[
    list[str] | None,
    _option(
        "--server",
        "Attach to a running server instead of launching: host:port of gRPC, or host:port/http_port/metrics_port. "
        "Repeatable.",
    ),
]
ServersFile = Annotated[
    Path | None,
    _option("--servers-file", "Attach to the servers in this file, one a line; it is watched: they join and leave."),
]
ServersDns = Annotated[
    str | None, _option("--servers-dns", "Attach to every address behind name:port, which is looked up every 5 s.")
]
TokenizerInstances = Annotated[
    int | None,
    _option(
        "--tokenizer-instances",
        "Tokenizer instances of each server; by default 8 beside a GPU, 2 without one, at most one a core.",
        min=1,
    ),
]
LogFormat = Annotated[LogFormatChoice, _option("--log-format", "Lines for people, or JSON.")]
DisableLogRequest = Annotated[
    bool, _option("--disable-log-request", "Accepted for Arctic Inference's users: requests are never logged here.")
]
