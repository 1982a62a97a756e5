"""The settings of a model repository and of a tritonserver, resolved from the options and checked once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import Device, default_device, default_tokenizer_instances
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

LOOPBACK = "127.0.0.1"
GPU_MEMORY_UTILIZATION = 0.9
"""Part of a GPU's memory, divided among its replicas."""
ControlMode = Literal["none", "poll", "explicit"]


@dataclass(frozen=True)
class RenderSettings:
    """A model and the machine that serves it."""

    model: str
    """A name on the hub, or the absolute path of a folder."""
    device: Device = "cpu"
    tokenizer_instances: int = 2
    replicas: int = 1
    """Embedder instances per GPU, or per group of GPUs if tensor parallel."""
    gpus: tuple[int, ...] = ()
    """Triton's GPU numbers; empty: every GPU that it sees."""
    tensor_parallel_size: int = 1
    max_batch_tokens: int | None = None
    executor: str | None = None
    queue_limits: bool | None = None
    """Bounded queues, priorities and deadlines in Triton; None: only on a GPU (see `limits_in_triton`)."""
    reference: str | None = None
    """The reference of the vectors: a file's absolute path, "off", or None (transformers in float32)."""
    quantization_quality: float | None = None
    """For int8: the share of the ten nearest neighbours that must stay; None: the engine's default."""
    calibration: str | None = None
    """The absolute path of a file of texts that int8 is calibrated with; None: the project's own."""
    deterministic: bool = False
    cache_bytes: int = 0
    """Bytes per replica for the vectors of repeated texts; 0 keeps none."""
    instruction_template: str | None = None
    """The prompt in which `{instruction}` stands for the request parameter; None: the model's own."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """The given vLLM engine arguments, by their Python names."""
    served: ServedModel = FIRST_MODEL
    """What the server calls the model."""
    adapters: tuple[tuple[str, str], ...] = ()
    """Names and places of the model's LoRA adapters: each a name on the hub, or the absolute path of a folder."""
    memory_part: float = 1.0
    """Part of the memory that the models of a GPU share."""

    def __post_init__(self) -> None:
        if self.device == "cpu":
            if self.gpus:
                raise StartError("--gpus needs --device cuda")
            if self.tensor_parallel_size > 1:
                raise StartError("--tensor-parallel-size above 1 needs --device cuda")
        if self.instruction_template is not None and self.instruction_template.count("{instruction}") != 1:
            raise StartError("--instruction-template must hold {instruction} once")
        if len(set(self.gpus)) != len(self.gpus):
            raise StartError("--gpus names a GPU twice")
        if self.gpus and len(self.gpus) % self.tensor_parallel_size:
            raise StartError(
                f"--gpus names {len(self.gpus)} GPUs, which --tensor-parallel-size {self.tensor_parallel_size} "
                "does not divide"
            )
        if self.max_batch_tokens is not None:
            from tritonembed_engine.settings import MOST_BATCH_TOKENS

            if self.max_batch_tokens > MOST_BATCH_TOKENS:
                raise StartError(f"--max-batch-tokens must be at most {MOST_BATCH_TOKENS}")

    @property
    def limits_in_triton(self) -> bool:
        """Whether Triton limits its queues: by default only on a GPU. On a CPU, the engine limits them.

        With limits, Triton's batcher can miss that an instance became free, and checks again half a second later. This
        happens after most bursts if threads wait for a core, and hardly ever on a GPU's machine (perf/README.md).
        """
        return self.device == "cuda" if self.queue_limits is None else self.queue_limits

    def gpu_groups(self) -> list[list[int]]:
        """The GPUs of each tensor-parallel group, in the given order; without `--gpus`, one group from GPU 0 on."""
        size = self.tensor_parallel_size
        gpus = list(self.gpus) or list(range(size))
        return [gpus[first : first + size] for first in range(0, len(gpus), size)]

    def gpu_memory_share(self) -> float:
        """Part of a GPU's memory that one replica takes: vLLM's `gpu_memory_utilization` divided among models and
        replicas.

        Raises StartError if `gpu_memory_utilization` is not above 0 and at most 1.
        """
        whole = float(self.vllm.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION))
        if not 0 < whole <= 1:
            raise StartError("--gpu-memory-utilization must be above 0 and at most 1")
        return round(whole * self.memory_part / self.replicas, 4)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One tritonserver: where it listens and how it runs. Times in seconds."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int
    http_host: str
    metrics_host: str
    """Triton's HTTP and metrics have no authentication, so by default only this machine reaches them."""
    model_control_mode: ControlMode
    tritonserver: Path | None
    mps: bool
    """Start an MPS daemon for replicas that share a GPU, if MPS is installed."""
    startup_timeout: float
    startup_limit: str = "--startup-timeout"
    """The option that sets `startup_timeout`."""
    drain_timeout: float
    log_verbose: bool
    log_requests: bool
    triton_traces: str | None = None
    """The OTLP/HTTP endpoint of Triton's own spans; None: it makes none."""

    def ports(self) -> dict[str, int]:
        """The ports, by their option."""
        return {"--port": self.grpc_port, "--http-port": self.http_port, "--metrics-port": self.metrics_port}

    def hosts(self) -> dict[str, str]:
        """The addresses, by the option of their port."""
        return {"--port": self.host, "--http-port": self.http_host, "--metrics-port": self.metrics_host}

    @property
    def local_address(self) -> str:
        """host:port of gRPC, to which this machine can connect."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.grpc_port}" if ":" in host else f"{host}:{self.grpc_port}"


def model_reference(model: str) -> str:
    """A folder's absolute path, or a hub name unchanged. Raises StartError if there is no such folder."""
    if not model:
        raise StartError("--model is empty")  # an unset shell variable, which would mean this folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    looks_like_a_path = model.startswith((".", "~", "/")) or model.count("/") > 1 or folder.exists()
    if looks_like_a_path:
        raise StartError(f"--model: there is no folder {model}")
    return model


def resolve_reference(file: Path | None, without: bool) -> str | None:
    """The value of `reference` in model.json. Raises StartError if both options are given."""
    if file is not None and without:
        raise StartError("--reference and --no-reference contradict each other")
    return "off" if without else None if file is None else str(file)


def parse_gpus(text: str | None) -> tuple[int, ...]:
    """Parse GPU numbers such as `0,1`. Raises StartError for any other text."""
    if not text:
        return ()
    try:
        gpus = tuple(int(part) for part in text.split(","))
    except ValueError:
        gpus = (-1,)
    if min(gpus) < 0:
        raise StartError(f"--gpus: {text!r} is not a list of GPU numbers such as 0,1")
    return gpus


def resolve_device(device: str | None) -> Device:
    """The given device, or this machine's default."""
    if device is None:
        return default_device()
    return "cuda" if device == "cuda" else "cpu"


def resolve_tokenizer_instances(count: int | None, device: Device) -> int:
    """The given count, or the default for this machine's cores."""
    return count if count is not None else default_tokenizer_instances(device)
