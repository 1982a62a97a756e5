# Generated from _describe_aio.py by scripts/unasync.py: edit that file, then run `make unasync`.
"""What a server reports about itself and its models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tritonclient.grpc import service_pb2

from tritonembed_protocol.space import has_quality

from ._channel import Pairs
from ._errors import ModelNotFoundError, TritonEmbedError, UnavailableError
from ._results import ModelInfo, model_info
from ._spaces import quality_question, quality_told, space_question, space_told
from ._transport import ask
from .request import Deadline


def is_starting(stubs: Iterable[Any], timeout: float, metadata: Pairs) -> bool:
    """Whether a server is there and none can embed yet: each reports that it is not ready, and knows no models.

    A server that ends also reports that it is not ready, while it still answers.
    """
    found = False
    for stub in stubs:
        try:
            ready = ask(stub.ServerReady, service_pb2.ServerReadyRequest(), timeout, metadata)
            if ready.ready:
                return False
        except TritonEmbedError:
            continue
        try:
            ask(stub.ServerMetadata, service_pb2.ServerMetadataRequest(), timeout, metadata)
        except UnavailableError:
            found = True
        except TritonEmbedError:
            return False
        else:
            return False
    return found


def describe(
    stub: Any, model: str, tokens_model: str, deadline: Deadline, metadata: Pairs
) -> tuple[Any, list[ModelInfo]]:
    """The server's ServerMetadataResponse, and the models that it has of the two; it must have the first."""
    server = ask(stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline.left(), metadata)
    models = [_model_info(stub, model, deadline, metadata)]
    with suppress(ModelNotFoundError):
        models.append(_model_info(stub, tokens_model, deadline, metadata))
    return server, models


def _model_info(stub: Any, name: str, deadline: Deadline, metadata: Pairs) -> ModelInfo:
    request, config_request = service_pb2.ModelMetadataRequest(name=name), service_pb2.ModelConfigRequest(name=name)
    described = ask(stub.ModelMetadata, request, deadline.left(), metadata)
    config = ask(stub.ModelConfig, config_request, deadline.left(), metadata)
    return model_info(described, config)


def labels(stub: Any, model: str, deadline: Deadline, metadata: Pairs) -> tuple[str, ...]:
    """The labels of a reranker or classifier, as its configuration has them; none if it has none."""
    config = ask(stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), deadline.left(), metadata)
    with suppress(ValueError, TypeError):
        found = json.loads(config.config.parameters["labels"].string_value)
        return tuple(str(label) for label in found)
    return ()


def space(stub: Any, tokens_model: str, deadline: Deadline, metadata: Pairs) -> str | None:
    """The embedding space of the server's vectors; None if it has no model that reports it, or does not answer."""
    with suppress(TritonEmbedError):
        return space_told(ask(stub.ModelInfer, space_question(tokens_model), deadline.left(), metadata))
    return None


def quality(stub: Any, tokens_model: str, space: str | None, deadline: Deadline, metadata: Pairs) -> float | None:
    """What int8 keeps of rankings; None if the space is of another precision, or the server does not report it."""
    if space is None or not has_quality(space):
        return None
    with suppress(TritonEmbedError):
        question = quality_question(tokens_model, space)
        return quality_told(ask(stub.ModelInfer, question, deadline.left(), metadata))
    return None
