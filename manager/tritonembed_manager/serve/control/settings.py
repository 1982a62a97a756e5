"""What `serve` was asked for, resolved and checked once."""

from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.serve.control.discovery import Address, ServersDns, ServersFile
from tritonembed_manager.serve.control.health import HealthSettings
from tritonembed_manager.serve.control.plan import ServerPlan
from tritonembed_manager.serve.control.restarts import RestartLimits


@dataclass(frozen=True)
class LaunchSettings:
    """Servers to launch. Times in seconds."""

    plans: list[ServerPlan]
    host: str = "127.0.0.1"
    start_port: int = 50100
    tritonserver: Path | None = None
    mps: bool = True
    work_dir: Path | None = None
    limits: RestartLimits = field(default_factory=RestartLimits)
    log_verbose: bool = False


@dataclass(frozen=True)
class AttachSettings:
    """Servers that run already, and where more of them are listed."""

    servers: list[Address] = field(default_factory=list)
    file: ServersFile | None = None
    dns: ServersDns | None = None


@dataclass(frozen=True)
class ServeSettings:
    """One endpoint. Either `launch` or `attach` says over which servers. Times in seconds."""

    model: str
    launch: LaunchSettings | None
    attach: AttachSettings | None
    host: str = "0.0.0.0"
    port: int = 50050
    http_port: int = 8080
    workers: int = 1
    policy: str = "round_robin"
    health: HealthSettings = field(default_factory=HealthSettings)
    forward_timeout: float = 60.0
    startup_timeout: float = 1800.0
    drain_timeout: float = 30.0
    max_in_flight: int = 4096
    max_in_flight_per_server: int = 1024
    log_format: str = "text"

    def __post_init__(self) -> None:
        if (self.launch is None) == (self.attach is None):
            raise StartError("--model is missing (or --server, --servers-file, --servers-dns, to attach)")
        if self.port == self.http_port:
            raise StartError(f"--port and --http-port are both {self.port}")

    @property
    def warnings(self) -> list[str]:
        """What `status` says of the settings."""
        plans = self.launch.plans if self.launch else []
        if any(plan.render.reference == "off" for plan in plans):
            return ["the vectors are not held against a reference (--no-reference)"]
        return []
