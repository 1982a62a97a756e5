"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from . import _pipeline_aio
from ._calls_aio import DirectCalls, RoutedCalls
from ._channel import ChannelSettings, Pem, targets_of
from ._collector import Collector, rows_of
from ._deadline import Deadline
from ._errors import ModelNotFoundError, TritonEmbedError, UnavailableError, error_from_rpc
from ._metadata import Metadata, Pairs
from ._options import EmbeddingType, InputType, Options, Priority, Truncate
from ._request import Call, Request
from ._results import EmbeddingResult, ModelInfo, ServerInfo
from ._router import Router
from ._server_info import model_info, server_info
from ._settings import ClientSettings
from ._wire import TokenIds
from .policies import PolicyName


class AsyncEmbeddingClient:
    """EmbeddingClient for asyncio: the same parameters, results and errors; see there.

    Cancelling a task that waits for it cancels its requests. It belongs to the event loop of its first call.
    """

    def __init__(
        self,
        target: str | Iterable[str] = "localhost:50050",
        *,
        policy: PolicyName = "least_loaded",
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
        self._targets = targets_of(target)
        self._router = Router(self._targets, policy)
        self._settings = ClientSettings(model, tokens_model, metadata, max_in_flight * len(self._targets))
        self._channel_settings = ChannelSettings(
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
        )
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._calls: DirectCalls | RoutedCalls
        self._closed = False

    async def __aenter__(self) -> AsyncEmbeddingClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests that are outstanding in other tasks fail with CancelledError."""
        self._closed = True
        self._router.close()
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close(None)

    async def embed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: Truncate | None = None,
        dimensions: int | None = None,
        embedding_type: EmbeddingType = "float",
        normalize: bool | None = None,
        priority: Priority = "bulk",
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> EmbeddingResult:
        """The embeddings of any number of texts, in their order; see EmbeddingClient.embed."""
        options = Options(
            input_type=input_type,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            dimensions=dimensions,
            embedding_type=embedding_type,
            normalize=normalize,
            priority=priority,
        )
        call = self._settings.texts(texts, options, batch_size, timeout)
        return await self._collect(call, rows_of(texts), metadata)

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: Truncate | None = None,
        dimensions: int | None = None,
        embedding_type: EmbeddingType = "float",
        normalize: bool | None = None,
        priority: Priority = "bulk",
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> AsyncGenerator[EmbeddingResult, None]:
        """The result of each request, in order, for ``async for``; see EmbeddingClient.iter_embed.

        Leaving the loop early, close it: ``async with contextlib.aclosing(client.iter_embed(texts)) as results``.
        """
        options = Options(
            input_type=input_type,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            dimensions=dimensions,
            embedding_type=embedding_type,
            normalize=normalize,
            priority=priority,
        )
        call = self._settings.texts(texts, options, batch_size, timeout)
        return _owned(self._answers(call, metadata))

    async def embed_tokens(
        self,
        sequences: Iterable[TokenIds],
        *,
        dimensions: int | None = None,
        embedding_type: EmbeddingType = "float",
        normalize: bool | None = None,
        priority: Priority = "bulk",
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> EmbeddingResult:
        """The embeddings of token id sequences; see EmbeddingClient.embed_tokens."""
        options = Options(dimensions=dimensions, embedding_type=embedding_type, normalize=normalize, priority=priority)
        call = self._settings.tokens(sequences, options, batch_size, timeout)
        return await self._collect(call, rows_of(sequences), metadata)

    async def is_ready(self, *, timeout: float = 5.0) -> bool:
        """Whether an inference succeeds now; see EmbeddingClient.is_ready."""
        try:
            await self.embed(["ready"], timeout=timeout)
        except TritonEmbedError:
            return False
        return True

    async def info(self, *, timeout: float = 5.0) -> ServerInfo:
        """The server's name and version, its models and dimensions; see EmbeddingClient.info."""
        self._open()
        deadline, pairs = Deadline(timeout), self._settings.metadata(None)
        for stub in self._stubs[:-1]:
            with suppress(UnavailableError):
                return await self._info(stub, deadline, pairs)
        return await self._info(self._stubs[-1], deadline, pairs)

    async def _info(self, stub: Any, deadline: Deadline, pairs: Pairs) -> ServerInfo:
        server = await _ask(stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline, pairs)
        models = [await _model(stub, self._settings.model, deadline, pairs)]
        with suppress(ModelNotFoundError):
            models.append(await _model(stub, self._settings.tokens_model, deadline, pairs))
        dimensions = None
        with suppress(TritonEmbedError):
            dimensions = (await self.embed([], timeout=deadline.left())).embeddings.shape[1]
        return server_info(server, models, dimensions)

    def _open(self) -> DirectCalls | RoutedCalls:
        if self._closed:
            raise RuntimeError("the client is closed")
        if not self._channels:
            # Not in the constructor: a channel takes the event loop that runs when it is opened.
            self._channels = self._channel_settings.open_aio(self._targets)
            self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
            several = len(self._stubs) > 1
            self._calls = RoutedCalls(self._router, self._stubs) if several else DirectCalls(*self._stubs)
        return self._calls

    def _answers(self, call: Call, metadata: Metadata | None) -> AsyncGenerator[EmbeddingResult, None]:
        calls = self._open()
        pairs = self._settings.metadata(metadata)

        def send(request: Request) -> Any:
            return calls.send(request, pairs)

        return _read(call, _pipeline_aio.answers(call.requests(), send, self._settings.max_in_flight))

    async def _collect(self, call: Call, rows: int | None, metadata: Metadata | None) -> EmbeddingResult:
        collector = Collector(rows)
        async with aclosing(self._answers(call, metadata)) as answers:
            async for answer in answers:
                collector.add(answer)
        result = collector.result()
        if result is None:
            columns = call.columns
            if columns is None:
                columns = (await self._collect(call.probe(), 1, metadata)).embeddings.shape[1]
            result = EmbeddingResult(np.empty((0, columns), call.dtype), np.empty(0, np.int32))
        return result


async def _read(
    call: Call, answers: AsyncGenerator[tuple[Request, Any], None]
) -> AsyncGenerator[EmbeddingResult, None]:
    async with aclosing(answers):
        async for request, response in answers:
            yield call.read(request, response)


async def _owned(answers: AsyncGenerator[EmbeddingResult, None]) -> AsyncGenerator[EmbeddingResult, None]:
    async with aclosing(answers):
        async for answer in answers:
            yield answer.copy()


async def _model(stub: Any, name: str, deadline: Deadline, pairs: Pairs) -> ModelInfo:
    metadata = await _ask(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=name), deadline, pairs)
    config = await _ask(stub.ModelConfig, service_pb2.ModelConfigRequest(name=name), deadline, pairs)
    return model_info(metadata, config)


async def _ask(method: Any, request: Any, deadline: Deadline, pairs: Pairs) -> Any:
    try:
        return await method(request, timeout=deadline.left(), metadata=pairs)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
