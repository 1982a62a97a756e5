"""The blocking client."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._channel import ChannelSettings, Pem
from ._errors import CancelledError, ModelNotFoundError, TritonEmbedError, error_from_rpc
from ._request import Call, Options
from ._results import Embeddings, ServerInfo
from ._server_info import server_info
from ._settings import ClientSettings, Metadata
from ._wire import encode_texts, encode_token_ids


class EmbeddingClient:
    """Embeds texts through a Triton server, over gRPC; safe to use from several threads.

    ``target``: host:port. ``model`` takes texts, ``tokens_model`` token ids. ``tls=True`` encrypts; root certificates
    (to know the server by) and a key with its certificate chain (to be known by) are PEM, as a path or as bytes.
    ``metadata``: pairs sent with every request, such as ``("authorization", "Bearer …")``.
    ``max_in_flight``: how many requests one call keeps outstanding. ``keepalive_time`` seconds without a word from the
    server it is pinged, and given up after ``keepalive_timeout`` more; under 300 s a server may take pings for abuse.

    It connects at the first request, and again by itself after the connection was lost. Every method raises
    TritonEmbedError's subclasses for what goes wrong with a request, and RuntimeError once the client is closed.
    """

    def __init__(
        self,
        target: str = "localhost:50050",
        *,
        model: str = "embedding",
        tokens_model: str = "embedder",
        tls: bool = False,
        root_certificates: Pem | None = None,
        private_key: Pem | None = None,
        certificate_chain: Pem | None = None,
        metadata: Metadata | None = None,
        max_in_flight: int = 8,
        keepalive_time: float = 300.0,
        keepalive_timeout: float = 20.0,
    ) -> None:
        self._settings = ClientSettings(model, tokens_model, metadata, max_in_flight)
        self._channel: grpc.Channel | None = ChannelSettings(
            target,
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
        ).open()
        self._open_stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests that are outstanding in other threads fail with CancelledError."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def embed(
        self,
        texts: Iterable[str],
        *,
        input_type: str | None = None,
        truncate: str | None = None,
        dimensions: int | None = None,
        embedding_type: str = "float",
        normalize: bool | None = None,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Embeddings:
        """The vectors of any number of texts, in their order.

        ``input_type``: ``query`` or ``passage``, for models that have prompts. ``truncate``: which end of a long text
        is cut, ``END`` (the default) or ``START``; ``NONE`` makes a long text an error. ``dimensions``: the vectors'
        first so many, normalised again; all by default. ``embedding_type``: see Embeddings. ``normalize``: overrides
        the model's own way. ``batch_size``: texts a request, 1 to 1024. ``timeout``: seconds for the whole call.
        ``metadata``: sent beside the client's own.

        No texts give vectors of shape (0, dimensions), or (0, 0) without ``dimensions``, and ask no server.
        """
        options = Options(input_type, truncate, dimensions, embedding_type, normalize)
        call = self._settings.texts(texts, options, batch_size, timeout)
        return call.joined(list(self._answers(call, metadata)))

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        input_type: str | None = None,
        truncate: str | None = None,
        dimensions: int | None = None,
        embedding_type: str = "float",
        normalize: bool | None = None,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Generator[Embeddings, None, None]:
        """As ``embed``, giving the Embeddings of each request, in order: for more texts than memory holds.

        Texts are taken as requests go out, at most ``max_in_flight`` requests ahead of what was given out. The clock
        of ``timeout`` starts now and also runs while the caller works. Closing the iterator cancels what is on its way.
        """
        options = Options(input_type, truncate, dimensions, embedding_type, normalize)
        call = self._settings.texts(texts, options, batch_size, timeout)
        return (call.joined([answer]) for answer in self._answers(call, metadata))

    def embed_tokens(
        self,
        sequences: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        dimensions: int | None = None,
        embedding_type: str = "float",
        normalize: bool | None = None,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Embeddings:
        """The vectors of token id sequences, special tokens included by the caller; nothing is truncated."""
        options = Options(dimensions=dimensions, embedding_type=embedding_type, normalize=normalize)
        call = self._settings.tokens(sequences, options, batch_size, timeout)
        return call.joined(list(self._answers(call, metadata)))

    def is_ready(self, *, timeout: float = 5.0) -> bool:
        """Whether an inference succeeds now; Triton's own readiness stays true when a model's process has died."""
        try:
            self.embed(["ready"], timeout=timeout)
        except TritonEmbedError:
            return False
        return True

    def info(self, *, timeout: float = 5.0) -> ServerInfo:
        """The server's name and version and its models; a server without ``tokens_model`` gives only ``model``."""
