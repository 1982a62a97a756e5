"""Ray, started by this process or as a running cluster, and its resources."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tritonembed_bulk import Device
from tritonembed_bulk.job import BLOCK_BYTES, Workers
from tritonembed_bulk.parts import Refused

MORE_TASKS = 2
"""CPUs that a Ray started here has beyond the machine's, for tasks that read and write while a model computes."""
LARGEST_STORE = 4 * 1024**3
"""Bytes of shared memory that a Ray started here takes for parts between two stages."""


@contextmanager
def ray_running(address: str | None, *, dashboard: bool, cpus: int | None = None) -> Iterator[None]:
    """Ray while entered. address: a cluster's; None: Ray starts here, and ends at the exit. cpus: the number for a Ray
    that starts here; None: the machine's. Raises Refused."""
    # Ray reads these variables when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Its processes write warnings about the internals of Ray Data to the terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Refused(f"bulk needs more than is installed ({error.name}): pip install 'tritonembed[bulk]'") from None
    from ray.data import DataContext

    settings: dict[str, Any] = {"address": address}
    if address is None:
        settings = {
            "address": "local",
            "num_cpus": cpus or cores() + MORE_TASKS,
            "include_dashboard": dashboard,
            "object_store_memory": min(LARGEST_STORE, _shared_memory() // 2),
        }
    try:
        with _without_standard_error():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).strip().partition("\n")[0]
        raise Refused(f"--ray-address: Ray can't be reached ({line[:200]})") from None
    try:
        quieten(DataContext.get_current())
        yield
    finally:
        ray.shutdown()


def quieten(context: Any) -> None:
    """Leave the terminal to this command, and give each part a block of its own."""
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.target_min_block_size = 1
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_workers(most: int | None, cpus: float | None) -> Workers:
    """A worker per GPU. most, cpus: the numbers asked for; None: from Ray's resources. Raises Refused."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus:
        raise Refused("--device cuda: Ray has no GPU")
    return Workers(most or gpus, cpus or 1, 1)


def cpu_workers(most: int | None, cpus: float | None, *, started_here: bool) -> Workers:
    """A worker per machine, on all of its CPUs but one. A Ray that was started here has more CPUs than the machine:
    there, the workers share the machine's CPUs. most, cpus: as for `gpu_workers`."""
    import ray

    if started_here:
        return Workers(most or 1, cpus or max(1, cores() // (most or 1)))
    smallest = min(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    each = cpus or max(1, smallest - 1)
    return Workers(most or max(1, int(ray.cluster_resources().get("CPU", 1) // each)), each)


def device_of(device: Device) -> str:
    """ "cpu" or "cuda": auto takes GPUs if Ray has any."""
    import ray

    if device != "auto":
        return device
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def machines() -> list[dict[str, Any]]:
    """CPUs, GPUs and memory of each machine."""
    import ray

    found = []
    for node in ray.nodes():
        resources = node["Resources"]
        kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
        found.append(
            {
                "host": node["NodeManagerHostname"],
                "alive": node["Alive"],
                "cpus": resources.get("CPU", 0),
                "gpus": resources.get("GPU", 0),
                "accelerator": kinds[0] if kinds else None,
                "memory_gib": round(resources.get("memory", 0) / 2**30, 1),
            }
        )
    return found


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Hide standard error: Ray's start writes lines to it that can't be switched off. Its failures are exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _shared_memory() -> int:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return LARGEST_STORE
    return max(found.f_frsize * found.f_bavail, 256 * 1024**2)
