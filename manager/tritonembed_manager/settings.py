"""What `render` and `replica` were asked for, resolved and checked once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonembed_manager.errors import StartError
from tritonembed_manager.machine import Device, default_device, default_tokenizer_instances

DEFAULT_GPU_MEMORY_UTILIZATION = 0.9


@dataclass(frozen=True)
class RenderSettings:
    """A model and the machine it is served on."""

    model: str
    """A name on the hub, or the absolute path of a folder."""
    device: Device = "cpu"
    tokenizer_instances: int = 2
    replicas: int = 1
    """Embedder instances a GPU (or a group of GPUs, when tensor parallel)."""
    gpus: tuple[int, ...] = ()
    """Triton's GPU numbers; empty: every GPU it sees."""
    tensor_parallel_size: int = 1
    max_batch_tokens: int | None = None
    executor: str | None = None
    queue_limits: bool | None = None
    """Bounded queues, priorities and deadlines in Triton; None: beside a GPU (see `limits_in_triton`)."""
    reference: str | None = None
    """What the vectors are held against: a file's absolute path, "off", or None (transformers in float32)."""
    deterministic: bool = False
    vllm: dict[str, Any] = field(default_factory=dict)
    """vLLM engine arguments that were given, by their Python names."""

    def __post_init__(self) -> None:
        if self.device == "cpu":
            if self.gpus:
                raise StartError("--gpus needs --device cuda")
            if self.tensor_parallel_size > 1:
                raise StartError("--tensor-parallel-size above 1 needs --device cuda")
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
                raise StartError(f"--max-batch-tokens is at most {MOST_BATCH_TOKENS}")

    @property
    def limits_in_triton(self) -> bool:
        """As asked for; else Triton limits its queues beside a GPU, and on a CPU the engine does.

        With limits Triton's batcher can miss that an instance became free, and looks again half a second later: where
        threads wait for a core after most bursts, on a GPU's machine hardly ever (perf/README.md).
        """
        return self.device == "cuda" if self.queue_limits is None else self.queue_limits

    def gpu_groups(self) -> list[list[int]]:
        """The GPUs of each tensor-parallel group, in the order given; without `--gpus`, one group from GPU 0 on."""
        size = self.tensor_parallel_size
        gpus = list(self.gpus) or list(range(size))
        return [gpus[first : first + size] for first in range(0, len(gpus), size)]

    def gpu_memory_share(self) -> float:
        """Part of a GPU's memory that one replica takes: vLLM's `gpu_memory_utilization`, divided among them."""
        whole = float(self.vllm.get("gpu_memory_utilization", DEFAULT_GPU_MEMORY_UTILIZATION))
        if not 0 < whole <= 1:
            raise StartError("--gpu-memory-utilization must be above 0 and at most 1")
        return round(whole / self.replicas, 4)


@dataclass(frozen=True)
class ServerSettings:
    """One tritonserver: where it listens and how it is run. Times in seconds."""

    host: str = "0.0.0.0"
    grpc_port: int = 50051
    http_port: int = 8000
    metrics_port: int = 8002
    model_control_mode: str = "none"
    tritonserver: Path | None = None
    mps: bool = True
    """An MPS daemon for replicas that share a GPU, where there is one to start."""
    startup_timeout: float = 1800.0
    drain_timeout: float = 30.0
    log_verbose: bool = False
    log_requests: bool = True

    def ports(self) -> dict[str, int]:
        """The option that chose each port, and the port."""
        return {"--port": self.grpc_port, "--http-port": self.http_port, "--metrics-port": self.metrics_port}

    @property
    def local_host(self) -> str:
        """An address of the server that this machine can connect to."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)


def model_reference(model: str) -> str:
    """A folder as its absolute path, a hub name as it is. Raises StartError for a folder that is not there."""
    if not model:
        raise StartError("--model is empty")  # as of an unset shell variable: it would be this folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    looks_like_a_path = model.startswith((".", "~", "/")) or model.count("/") > 1 or folder.exists()
    if looks_like_a_path:
        raise StartError(f"--model: there is no folder {model}")
    return model


def resolve_reference(file: Path | None, without: bool) -> str | None:
    """`--reference` and `--no-reference` as model.json has them. Raises StartError for both at once."""
    if file is not None and without:
        raise StartError("--reference and --no-reference contradict each other")
    return "off" if without else None if file is None else str(file)


def parse_gpus(text: str | None) -> tuple[int, ...]:
    """`0,1` as numbers. Raises StartError for anything else."""
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
    """The device asked for, or what this machine has."""
    if device is None:
        return default_device()
    return "cuda" if device == "cuda" else "cpu"


def resolve_tokenizer_instances(count: int | None, device: Device) -> int:
    """The count asked for, or what suits the machine's cores."""
    return count if count is not None else default_tokenizer_instances(device)
