"""The settings of `serve`, resolved and checked, and the parts of --drain-timeout."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.discovery import Address, ServersDns, ServersFile
from tritonembed_manager.router.control.envoy.settings import EnvoySettings
from tritonembed_manager.router.control.health import HealthSettings
from tritonembed_manager.router.control.plan import ServerPlan, VersionPlan
from tritonembed_manager.router.control.restarts import RestartLimits
from tritonembed_manager.router.control.tenants import TenantsFile
from tritonembed_manager.router.control.watched_files import ServerFiles, TlsFiles, WatchedFile
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.link import EndpointSettings, WorkerConfig
from tritonembed_manager.server.client_tls import ClientTls

SERVERS_END_S = 5.0
"""The most time for launched servers to end, once nothing is in flight."""
_CLOSING_S = 3.0
"""A second each: for late calls, for gRPC's last answers, and for HTTP's."""


@dataclass(frozen=True)
class DrainTime:
    """The parts of a drain in seconds, in their order. Their sum is --drain-timeout."""

    work: float
    """Requests in flight may finish."""
    closing: float
    """Workers refuse the cut requests, and end."""
    ending: float
    """Launched servers end; 0 if there are none."""

    @classmethod
    def of(cls, timeout: float, *, launches: bool) -> "DrainTime":
        """Divide a --drain-timeout. timeout: seconds. launches: whether there are launched servers."""
        closing = min(_CLOSING_S, timeout / 3)
        ending = min(SERVERS_END_S, timeout / 4) if launches else 0.0
        return cls(timeout - closing - ending, closing, ending)

    @property
    def killing(self) -> float:
        """The part of `ending` for killing servers that don't end by themselves."""
        return self.ending / 5


@dataclass(frozen=True)
class ModelsPlan:
    """The requested models: their names for clients, and their versions."""

    names: ServedNames
    versions: list[VersionPlan]

    def name_of(self, model: str) -> str:
        """Clients' name of the model with this ensemble."""
        return self.names.of_ensemble(model)


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Servers to launch. Times in seconds."""

    versions: list[VersionPlan]
    host: str
    start_port: int
    tritonserver: Path | None
    mps: bool
    work_dir: Path | None
    limits: RestartLimits
    log_verbose: bool
    max_loaded: int | None = None
    """Models in memory at a time; None for all."""
    models_file: WatchedFile[ModelsPlan] | None = None
    """The models file; None if the models don't change."""
    triton_traces: str | None = None
    """Where Triton sends its own spans; None for nowhere."""

    @property
    def follows_models(self) -> bool:
        """Whether the models may change, or one of them has versions."""
        models = {version.served for version in self.versions}
        return self.models_file is not None or len(models) < len(self.versions)

    @property
    def plans(self) -> list[ServerPlan]:
        """The servers of all versions."""
        return [plan for version in self.versions for plan in version.plans]


@dataclass(frozen=True)
class AttachSettings:
    """Servers that already run, and the lists with more of them."""

    servers: list[Address] = field(default_factory=list)
    file: ServersFile | None = None
    dns: ServersDns | None = None
    tls: ServerFiles | None = None
    """Certificates for servers with grpcs://; None: without files."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings(EndpointSettings):
    """The settings of an endpoint. Either `launch` or `attach` gives its servers. Times in seconds."""

    launch: LaunchSettings | None
    attach: AttachSettings | None
    health: HealthSettings
    startup_timeout: float
    lame_duck: float
    drain_timeout: float
    """Seconds from the signal to the end; see DrainTime."""
    tls: TlsFiles | None = None
    """The ports' certificate; None for plain text."""
    envoy: EnvoySettings | None = None
    """Envoy's settings; None if the workers listen on the ports themselves."""
    xds: tuple[str, int] | None = None
    """Host and port of xDS; None for no such port."""
    tenants: TenantsFile | None = None
    """The tenants; None if the ports need no key."""
    usage_file: Path | None = None
    quota_store: Any = None
    """A client of Redis; None if each manager has its own quotas."""

    def __post_init__(self) -> None:
        if (self.launch is None) == (self.attach is None):
            raise StartError("--model is missing (or --server, --servers-file, --servers-dns, to attach)")
        if self.port == self.http_port:
            raise StartError(f"--port and --http-port are both {self.port}")

    def server_tls(self) -> ClientTls:
        """The current certificates for servers with grpcs://."""
        return self.attach.tls.value if self.attach and self.attach.tls else ClientTls()

    @property
    def warnings(self) -> list[str]:
        """Warnings about the settings, for `status`."""
        plans = self.launch.plans if self.launch else []
        if any(plan.render.reference == "off" for plan in plans):
            return ["the vectors are not compared with a reference (--no-reference)"]
        return []

    def worker_config(
        self, slots: int, drain: DrainTime, sockets: Path | None = None, quota_fd: int | None = None
    ) -> WorkerConfig:
        """The workers' settings.

        slots: columns of the load table. sockets: their folder, if Envoy has the ports. quota_fd: the quota table's,
        with tenants.
        """
        shared = {setting.name: getattr(self, setting.name) for setting in fields(EndpointSettings)}
        return WorkerConfig(
            **shared,
            index=0,
            slots=slots,
            drain_timeout=drain.work,
            closing_timeout=drain.closing,
            follows_models=self.launch is not None and self.launch.follows_models,
            # Envoy speaks TLS itself.
            tls=self.tls.value if self.tls and sockets is None else None,
            server_tls=self.server_tls(),
            sockets=None if sockets is None else str(sockets),
            tenants=tuple(self.tenants.tenants) if self.tenants else None,
            quota_fd=quota_fd,
        )
