"""Triton model configurations (config.pbtxt) as protobuf messages: read, set for a machine, written."""

import json
from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from tritonembed_manager.settings import RenderSettings

ModelConfig = Any
"""inference.ModelConfig, a protobuf message; its generated module carries no types."""

DEVICES_PARAMETER = "devices"
"""Parameter of `embedder`: {instance group: [GPU, …]} as JSON. Triton gives a KIND_MODEL instance no device."""


def parse(text: str) -> ModelConfig:
    """The message of a config.pbtxt. Raises google.protobuf.text_format.ParseError."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def to_text(config: ModelConfig) -> str:
    """The config.pbtxt of a message."""
    return str(text_format.MessageToString(config))


CPU_PREFERRED_BATCH = 64
"""Sentences that Triton hands to an instance at once when more wait, on a CPU; the templates say it for a GPU.

Triton picks by priority when it forms such a batch, and answers when all of it is done: the smaller, the sooner.
"""


QUEUE_FIELDS = ("priority_levels", "default_priority_level", "default_queue_policy", "priority_queue_policy")
"""With any of them Triton's batcher does not prefetch (`PriorityQueue::SupportPrefetching`): it waits for a free
instance, is woken just before one counts as free (`Payload::Execute`), and may look again only after 500 ms.
"""


def set_tokenizer(config: ModelConfig, settings: RenderSettings) -> None:
    """`tokenizer`: so many instances, on the CPU."""
    _set_batching(config, settings)
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=settings.tokenizer_instances)


def set_embedder(config: ModelConfig, settings: RenderSettings) -> None:
    """`embedder`: its instances and the devices they run on."""
    groups = model_config_pb2.ModelInstanceGroup
    _set_batching(config, settings)
    del config.instance_group[:]
    if DEVICES_PARAMETER in config.parameters:
        del config.parameters[DEVICES_PARAMETER]
    if settings.device == "cpu":
        config.instance_group.add(kind=groups.KIND_CPU, count=settings.replicas)
    elif settings.tensor_parallel_size == 1:
        config.instance_group.add(kind=groups.KIND_GPU, count=settings.replicas, gpus=settings.gpus)
    else:
        devices: dict[str, list[int]] = {}
        for gpus in settings.gpu_groups():
            for _ in range(settings.replicas):
                name = f"{config.name}_tp{len(devices)}"
                config.instance_group.add(name=name, kind=groups.KIND_MODEL, count=1)
                devices[name] = gpus
        set_parameter(config, DEVICES_PARAMETER, json.dumps(devices))


def _set_batching(config: ModelConfig, settings: RenderSettings) -> None:
    if settings.device == "cpu":
        config.dynamic_batching.preferred_batch_size[:] = [CPU_PREFERRED_BATCH]
    if not settings.limits_in_triton:
        for field in QUEUE_FIELDS:
            config.dynamic_batching.ClearField(field)


def instance_kinds(configs: Iterable[ModelConfig]) -> set[str]:
    """Which kinds of instances the models have, as Triton names them; an ensemble has none of its own."""
    name = model_config_pb2.ModelInstanceGroup.Kind.Name
    return {name(group.kind) for config in configs for group in config.instance_group}


def share_a_gpu(configs: Iterable[ModelConfig]) -> bool:
    """Whether several instances of a model run on the same GPU."""
    gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    return any(group.kind == gpu and group.count > 1 for config in configs for group in config.instance_group)


def set_parameter(config: ModelConfig, name: str, value: str) -> None:
    """A parameter of the configuration, which the python model reads as `string_value`."""
    config.parameters[name].string_value = value
