"""From KServe's metadata messages to plain objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._results import ModelInfo, ServerInfo, TensorInfo


def server_info(server: Any, models: Iterable[Any]) -> ServerInfo:
    """ServerInfo of a ServerMetadataResponse and the ModelMetadataResponses."""
    return ServerInfo(server.name, server.version, tuple(server.extensions), tuple(map(_model_info, models)))


def _model_info(model: Any) -> ModelInfo:
    return ModelInfo(model.name, tuple(model.versions), _tensors(model.inputs), _tensors(model.outputs))


def _tensors(tensors: Iterable[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)
