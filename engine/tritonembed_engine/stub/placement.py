"""Which GPUs a model instance uses.

Triton numbers the GPUs that its own process sees, so an inherited CUDA_VISIBLE_DEVICES (numbers or UUIDs) has to be
applied once more: Triton's GPU i is the i-th entry of that list. The result becomes CUDA_VISIBLE_DEVICES of the stub
before anything touches CUDA, so that the stub sees its own GPU as number 0.
"""

import json
from collections.abc import Mapping
from typing import Any

from tritonembed_engine.errors import ModelError

DEVICES_PARAMETER = "devices"
"""config.pbtxt parameter of `embedder`: {instance group: [GPU, …]} as JSON, for KIND_MODEL (tensor parallel)."""


def visible_devices(instance: Mapping[str, str], model_config: Mapping[str, Any], inherited: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES for one instance; None on a CPU.

    instance: the arguments Triton gave to `initialize`. inherited: the variable as the stub found it.
    """
    kind = instance["model_instance_kind"]
    if kind == "CPU":
        return None
    if kind == "GPU":
        wanted = [int(instance["model_instance_device_id"])]
    else:
        wanted = _devices_of_group(instance["model_instance_name"], model_config)
    # An empty list is CUDA's way to hide every GPU; an unset variable shows all of them under their own numbers.
    if inherited is None:
        return ",".join(str(device) for device in wanted)
    entries = [entry.strip() for entry in inherited.split(",") if entry.strip()]
    missing = [device for device in wanted if device >= len(entries)]
    if missing:
        raise ModelError(
            f"the instance group needs GPU {missing[0]}, but CUDA_VISIBLE_DEVICES shows {len(entries)} GPU(s)"
        )
    return ",".join(entries[device] for device in wanted)


def _devices_of_group(instance_name: str, model_config: Mapping[str, Any]) -> list[int]:
    parameter = model_config.get("parameters", {}).get(DEVICES_PARAMETER)
    if parameter is None:
        raise ModelError(f"KIND_MODEL needs the parameter {DEVICES_PARAMETER!r} in config.pbtxt: group name to GPUs")
    groups = _parse_groups(parameter["string_value"])
    # Triton names instances GROUP_INDEX (GROUP_0 if the count is 1).
    group = instance_name if instance_name in groups else instance_name.rpartition("_")[0]
    if group not in groups:
        raise ModelError(f"parameter {DEVICES_PARAMETER!r} in config.pbtxt does not name the instance group {group!r}")
    return groups[group]


def _parse_groups(text: str) -> dict[str, list[int]]:
    try:
        groups: dict[str, list[int]] = json.loads(text)
        right = all(gpus and all(type(gpu) is int and gpu >= 0 for gpu in gpus) for gpus in groups.values())
    except (ValueError, TypeError, AttributeError):
        right = False
    if not right:
        raise ModelError(f'parameter {DEVICES_PARAMETER!r} in config.pbtxt must be JSON like {{"GROUP": [0, 1]}}')
    return groups
