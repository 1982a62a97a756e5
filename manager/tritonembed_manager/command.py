"""tritonserver's command line."""

import socket
from pathlib import Path

from tritonembed_manager.ports import resolve
from tritonembed_manager.settings import ServerSettings
from tritonembed_manager.tritonserver import Installation

MODEL_LOAD_THREADS = 16
"""Tokenizer and embedder instances load at the same time; Triton's default of 4 would make them queue."""


def server_command(
    installation: Installation, repository: Path, settings: ServerSettings, region_prefix: str, *, gpu_metrics: bool
) -> list[str]:
    """Program and arguments. region_prefix: how this server's regions in /dev/shm are named."""
    grpc_address, http_address = _listen_addresses(settings.host)
    command = [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--model-control-mode={settings.model_control_mode}",
        f"--grpc-address={grpc_address}",
        f"--grpc-port={settings.grpc_port}",
        f"--http-address={http_address}",
        f"--http-port={settings.http_port}",
        f"--metrics-address={http_address}",
        f"--metrics-port={settings.metrics_port}",
        f"--exit-timeout-secs={max(1, round(settings.drain_timeout))}",
        f"--model-load-thread-count={MODEL_LOAD_THREADS}",
        # The configurations are complete; asking python to complete them would start every stub one time more.
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        f"--backend-config=python,stub-timeout-seconds={max(30, round(settings.startup_timeout))}",
    ]
    if settings.model_control_mode == "explicit":
        command.append("--load-model=*")
    if installation.backends is not None:
        command.append(f"--backend-directory={installation.backends}")
    if not gpu_metrics:
        # Without a GPU both only log that there is none.
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if settings.log_verbose and settings.log_requests:
        command.append("--log-verbose=1")
    return command


def _listen_addresses(host: str) -> tuple[str, str]:
    """As gRPC takes it, and as Triton's HTTP server does, which would listen on 255.255.255.255 for any other form."""
    family, (address, *_) = resolve(host)
    return (f"[{address}]", f"ipv6:{address}") if family is socket.AF_INET6 else (address, address)
