"""Text embeddings through NVIDIA Triton: the client.

from tritonembed import EmbeddingClient

with EmbeddingClient("localhost:50050") as client:
    embeddings, num_tokens = client.embed(["first text", "second text"])

Several servers: ``EmbeddingClient(["host1:8001", "host2:8001"])``. For asyncio: ``AsyncEmbeddingClient``.
"""

from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.types import Activation, EmbeddingType, InputType, Output, Priority, Truncate

from ._aio import AsyncEmbeddingClient
from ._chunks import ChunkResult
from ._client import EmbeddingClient
from ._errors import (
    AuthenticationError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    TritonEmbedError,
    UnavailableError,
)
from ._results import EmbeddingResult, ModelInfo, ServerInfo, SparseVector, TensorInfo, maxsim
from ._scores import Ranking, ScoreResult

__all__ = [
    "Activation",
    "AsyncEmbeddingClient",
    "AuthenticationError",
    "CancelledError",
    "ChunkResult",
    "DeadlineExceededError",
    "EmbeddingClient",
    "EmbeddingResult",
    "EmbeddingType",
    "InputType",
    "InvalidArgumentError",
    "ModelInfo",
    "ModelNotFoundError",
    "Output",
    "OverloadedError",
    "PolicyName",
    "Priority",
    "Ranking",
    "ScoreResult",
    "ServerError",
    "ServerInfo",
    "SparseVector",
    "TensorInfo",
    "TritonEmbedError",
    "Truncate",
    "UnavailableError",
    "maxsim",
]

# Tracebacks and documentation show the public name of a class, not the private module in which it is written.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
