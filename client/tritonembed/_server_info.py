"""From KServe's metadata messages to plain objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._results import ModelInfo, ServerInfo, TensorInfo


def server_info(server: Any, models: Iterable[ModelInfo], dimensions: int | None) -> ServerInfo:
    """ServerInfo of a ServerMetadataResponse, its models and the dimensions of its vectors."""
    return ServerInfo(server.name, server.version, tuple(server.extensions), tuple(models), dimensions)


def model_info(metadata: Any, config: Any) -> ModelInfo:
    """ModelInfo of a ModelMetadataResponse and a ModelConfigResponse."""
    parameters = {name: value.string_value for name, value in config.config.parameters.items()}
    return ModelInfo(
        name=metadata.name,
        versions=tuple(metadata.versions),
        max_batch_size=config.config.max_batch_size,
        inputs=_tensors(metadata.inputs),
        outputs=_tensors(metadata.outputs),
        parameters=parameters,
    )


def _tensors(tensors: Iterable[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)
