"""The plan of servers: versions of models, how many Triton servers run their replicas, and on which GPUs.

It imports no gRPC, for `--help`.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.settings import GPU_MEMORY_UTILIZATION, RenderSettings
from tritonembed_protocol.served import ServedModel

if TYPE_CHECKING:
    from tritonembed_manager.server.models_file import ModelEntry

Assignment = Literal["dedicated", "shared"]


@dataclass(frozen=True)
class ServerPlan:
    """A server's plan. render: the settings of its repository. gpus: its GPUs, numbered as the manager sees them."""

    render: RenderSettings
    replicas: int
    gpus: tuple[int, ...] = ()

    def visible_devices(self, inherited: str | None) -> str | None:
        """The server's CUDA_VISIBLE_DEVICES; None on a CPU. inherited: the manager's own.

        Raises StartError if the manager sees too few GPUs.
        """
        if not self.gpus:
            return None
        if inherited is None:
            return ",".join(str(gpu) for gpu in self.gpus)
        entries = [entry.strip() for entry in inherited.split(",") if entry.strip()]
        if max(self.gpus) >= len(entries):
            raise StartError(
                f"--num-gpus: CUDA_VISIBLE_DEVICES shows {len(entries)} GPU(s), {max(self.gpus) + 1} needed"
            )
        return ",".join(entries[gpu] for gpu in self.gpus)


@dataclass(frozen=True)
class VersionPlan:
    """A version of a model, and its servers.

    entry: what was asked for; equal entries are the same version. weight: the share of the model's requests that it
    gets, in percent. name: for people, unique in its model.
    """

    served: ServedModel
    entry: "ModelEntry"
    plans: tuple[ServerPlan, ...]
    weight: float = 100.0
    name: str = ""


def with_version_names(versions: Sequence[VersionPlan], taken: Sequence[str] = ()) -> list[VersionPlan]:
    """The versions of one model with names: the last part of the path, and a number if another version has that name.

    taken: names of other versions that are running.
    """
    named: list[VersionPlan] = []
    for version in versions:
        last = version.entry.path.rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9._-]", "-", last)[:64] or "model"
        others = {*taken, *(other.name for other in named)}
        numbered = (f"{name}.{number}" for number in itertools.count(2))
        free = next(each for each in itertools.chain([name], numbered) if each not in others)
        named.append(replace(version, name=free))
    return named


def plan_servers(
    base: RenderSettings,
    *,
    num_replicas: int,
    num_gpus: int = 1,
    assignment: Assignment = "dedicated",
    servers: int | None = None,
) -> list[ServerPlan]:
    """The servers to launch. base: the common settings; each server gets its own `replicas` and `gpus`.

    assignment: with "dedicated" each server has its own GPUs; with "shared" each server's replicas are spread over all
    GPUs. servers: their number, by default 1 on a CPU, else one per GPU (with tensor parallelism, per group of GPUs).
    Raises StartError, in one line, if the numbers don't fit together.
    """
    if servers is not None and servers > num_replicas:
        raise StartError(f"--servers {servers} is more than --num-replicas {num_replicas}")
    if base.device == "cpu":
        count = servers or 1
        shares = _even_shares(num_replicas, count)
        return [ServerPlan(replace(base, replicas=share), share) for share in shares]
    size = base.tensor_parallel_size
    if num_gpus % size:
        raise StartError(f"--tensor-parallel-size {size} does not divide --num-gpus {num_gpus}")
    groups = [tuple(range(first, first + size)) for first in range(0, num_gpus, size)]
    if num_replicas < len(groups):
        idle = num_gpus - num_replicas * size
        raise StartError(f"--num-replicas {num_replicas} leaves {idle} of --num-gpus {num_gpus} without work")
    count = servers or len(groups)
    spread = _dedicated if assignment == "dedicated" else _shared
    return spread(base, groups, num_replicas, count)


def on_gpus(plan: ServerPlan, gpus: Sequence[int]) -> ServerPlan:
    """The plan on these GPUs instead of the first GPUs."""
    return replace(plan, gpus=tuple(gpus[index] for index in plan.gpus))


def _dedicated(base: RenderSettings, groups: list[tuple[int, ...]], replicas: int, count: int) -> list[ServerPlan]:
    if len(groups) % count:
        raise StartError(
            f"--servers {count} does not divide the GPUs ({len(groups)} for replicas); --gpu-assignment shared lets "
            "servers share them"
        )
    each = len(groups) // count
    plans = []
    for server, share in enumerate(_even_shares(replicas, count)):
        own = groups[server * each : (server + 1) * each]
        if share % each:
            raise StartError(f"--num-replicas {replicas}: {share} replicas cannot be spread evenly over {each} GPUs")
        plans.append(_on_gpus(base, own, share // each, share // each))
    return plans


def _shared(base: RenderSettings, groups: list[tuple[int, ...]], replicas: int, count: int) -> list[ServerPlan]:
    if replicas % (count * len(groups)):
        raise StartError(
            f"--gpu-assignment shared: --num-replicas {replicas} cannot be spread evenly over {count} server(s) on "
            f"{len(groups)} GPU(s) each"
        )
    of_each = replicas // (count * len(groups))
    return [_on_gpus(base, groups, of_each, of_each * count) for _ in range(count)]


def _on_gpus(base: RenderSettings, groups: list[tuple[int, ...]], of_each: int, on_each: int) -> ServerPlan:
    """of_each: this server's replicas per GPU (group). on_each: all servers' replicas per GPU (group)."""
    whole = float(base.vllm.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION))
    # Rendering divides by this server's replicas only, but other servers may share the GPU.
    vllm = {**base.vllm, "gpu_memory_utilization": whole * of_each / on_each}
    gpus = tuple(gpu for group in groups for gpu in group)
    # The server sees only its own GPUs, numbered from 0.
    render = replace(base, replicas=of_each, gpus=tuple(range(len(gpus))), vllm=vllm)
    return ServerPlan(render, of_each * len(groups), gpus)


def _even_shares(total: int, count: int) -> list[int]:
    return [total // count + (index < total % count) for index in range(count)]
