"""The blocking client."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from itertools import chain, islice
from threading import Thread
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from . import _pipeline
from ._calls import DirectCalls, RoutedCalls, ask
from ._channel import ChannelSettings, Pem, targets_of
from ._collector import Collector, rows_of
from ._deadline import Deadline
from ._errors import ModelNotFoundError, TritonEmbedError, UnavailableError
from ._metadata import Metadata, Pairs
from ._options import EmbeddingType, InputType, Options, Priority, Truncate
from ._request import Call, Request
from ._results import EmbeddingResult, ModelInfo, ServerInfo
from ._router import Router
from ._server_info import model_info, server_info
from ._settings import ClientSettings
from ._wire import TokenIds
from .policies import PolicyName

# Seconds; closing takes milliseconds where nothing is wrong.
LONGEST_CLOSE = 1.0


class EmbeddingClient:
    """Embeds texts through one Triton server or several, over gRPC; safe to use from several threads.

    ``target``: host:port, or a list of them, of servers that have the same model. ``model`` takes texts,
    ``tokens_model`` token ids. ``tls=True`` encrypts; root certificates (to know the server by) and a key with its
    certificate chain (to be known by) are PEM, as a path or as bytes. ``metadata``: pairs sent with every request, such
    as ``("authorization", "Bearer …")``. ``max_in_flight``: how many requests one call keeps outstanding, times the
    number of servers. ``keepalive_time`` seconds without a word from a server it is pinged, and given up after
    ``keepalive_timeout`` more; under 300 s a server may take pings for abuse.

    Of several servers ``policy`` chooses one for each request: ``least_loaded`` where the fewest bytes of this client's
    texts are outstanding, ``round_robin`` in turn, ``random`` any. A request whose server breaks goes to another one,
    within its timeout and never twice to the same; such retries are at most 20 % of the last ten seconds' requests, or
    3, or one a server, if that is more, and moving what was in flight on a server that broke is not counted. Nothing
    else is sent again: not what is wrong with the request, not an overload. A server that broke or shed load is left
    alone for 0.25 s, longer each time in a row up to 8 s; then one request tries it.

    It connects at the first request, and again by itself after the connection was lost. Every method raises
    TritonEmbedError's subclasses for what goes wrong with a request, and RuntimeError once the client is closed.
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
        targets = targets_of(target)
        self._router = Router(targets, policy)
        self._settings = ClientSettings(model, tokens_model, metadata, max_in_flight * len(targets))
        self._channels = ChannelSettings(
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
        ).open(targets)
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        several = len(targets) > 1
        self._calls = RoutedCalls(self._router, self._stubs) if several else DirectCalls(*self._stubs)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; requests that are outstanding in other threads fail with CancelledError."""
        channels, self._channels = self._channels, []
        if channels:
            self._router.close()
            # gRPC cancels every request and waits until they have ended. One that Ctrl-C hit while it was being handed
            # over to gRPC never ends (grpc/grpc#19973): then the waiting is left to a thread that nobody waits for.
            thread = Thread(target=_close, args=[channels], daemon=True)
            thread.start()
            thread.join(LONGEST_CLOSE)

    def embed(
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
        """The embeddings of any number of texts, in their order; a single str is a TypeError, not its letters.

        ``input_type``: ``query`` or ``passage``, for models that have prompts. ``prompt_name``: the prompt of that name
        in the model's config_sentence_transformers.json stands before every text; an unknown name is an error.
        ``prompt``: this string itself stands before every text, and ``""`` turns the model's default prompt off. A call
        with both is an error; either one takes the place of the prompt that ``input_type`` would choose.

        ``truncate``: ``END`` or ``START`` is the end of a long text that is cut, and ``NONE`` makes a long text an
        error; the default is the model's own end. ``dimensions``: the vectors' first so many, normalised again; the
        default is the model's own number. ``embedding_type``: see EmbeddingResult. ``normalize``: overrides the model's
        own way. ``priority``: ``interactive`` goes ahead of ``bulk`` in the server's queue; it is for few, small
        requests. ``batch_size``: texts a request, 1 to 1024. ``timeout``: seconds for the whole call, None for no
        limit. ``metadata``: sent beside the client's own.

        The result is ``embeddings`` of shape (n, d) and ``num_tokens`` of shape (n,). No texts give embeddings of shape
        (0, d); without ``dimensions`` the server is asked for d. Raises InvalidArgumentError for a parameter that the
        server refuses.
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
        return self._collect(call, rows_of(texts), metadata)

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
    ) -> Generator[EmbeddingResult, None, None]:
        """As ``embed``, giving the result of each request, in order: for more texts than memory holds.

        Texts are taken as requests go out, at most twice ``max_in_flight`` requests ahead of what was given out. The
        clock of ``timeout`` starts now, and also runs while the caller works. Closing the generator cancels what is on
        its way. No texts give no results.
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
        return _owned(self._answers(call, rows_of(texts), metadata))

    def embed_tokens(
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
        """The embeddings of token id sequences, which hold their special tokens already; nothing is truncated."""
        options = Options(dimensions=dimensions, embedding_type=embedding_type, normalize=normalize, priority=priority)
        call = self._settings.tokens(sequences, options, batch_size, timeout)
        return self._collect(call, rows_of(sequences), metadata)

    def is_ready(self, *, timeout: float = 5.0) -> bool:
        """Whether an inference succeeds now, at any of the servers.

        Triton's own readiness stays true when a model's process has died.
        """
        try:
            self.embed(["ready"], timeout=timeout)
        except TritonEmbedError:
            return False
        return True

    def info(self, *, timeout: float = 5.0) -> ServerInfo:
        """The server's name and version, its models, and by an inference how long the vectors are.

        A server without ``tokens_model`` gives only ``model``, one that can't embed now no dimensions.
        Of several servers, the first that is there.
        """
        self._check_open()
        deadline, pairs = Deadline(timeout), self._settings.metadata(None)
        for stub in self._stubs[:-1]:
            with suppress(UnavailableError):
                return self._info(stub, deadline, pairs)
        return self._info(self._stubs[-1], deadline, pairs)

    def _info(self, stub: Any, deadline: Deadline, pairs: Pairs) -> ServerInfo:
        server = ask(stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline.left(), pairs)
        models = [_model(stub, self._settings.model, deadline, pairs)]
        with suppress(ModelNotFoundError):
            models.append(_model(stub, self._settings.tokens_model, deadline, pairs))
        dimensions = None
        with suppress(TritonEmbedError):
            dimensions = self.embed([], timeout=deadline.left()).embeddings.shape[1]
        return server_info(server, models, dimensions)

    def _check_open(self) -> None:
        if not self._channels:
            raise RuntimeError("the client is closed")

    def _answers(
        self, call: Call, rows: int | None, metadata: Metadata | None
    ) -> Generator[EmbeddingResult, None, None]:
        self._check_open()
        return self._read(call, rows, self._settings.metadata(metadata))

    def _read(self, call: Call, rows: int | None, pairs: Pairs) -> Generator[EmbeddingResult, None, None]:
        requests = call.requests()
        # Looking ahead is free where all inputs are there already; waiting for those to come would hold up the first.
        ready = [] if rows is None else list(islice(requests, 2))
        if len(ready) == 1:
            # gRPC answers a blocking call in this thread, at half the cost of one that may run beside others.
            yield call.read(ready[0], self._calls.ask(ready[0], pairs))
            return

        def send(request: Request) -> Any:
            return self._calls.send(request, pairs)

        with closing(_pipeline.answers(chain(ready, requests), send, self._settings.max_in_flight)) as answers:
            for request, response in answers:
                yield call.read(request, response)

    def _collect(self, call: Call, rows: int | None, metadata: Metadata | None) -> EmbeddingResult:
        collector = Collector(rows)
        with closing(self._answers(call, rows, metadata)) as answers:
            for answer in answers:
                collector.add(answer)
        result = collector.result()
        if result is None:
            columns = call.columns
            if columns is None:
                columns = self._collect(call.probe(), 1, metadata).embeddings.shape[1]
            result = EmbeddingResult(np.empty((0, columns), call.dtype), np.empty(0, np.int32))
        return result


def _owned(answers: Generator[EmbeddingResult, None, None]) -> Generator[EmbeddingResult, None, None]:
    with closing(answers):
        for answer in answers:
            yield answer.copy()


def _close(channels: list[grpc.Channel]) -> None:
    for channel in channels:
        channel.close()


def _model(stub: Any, name: str, deadline: Deadline, pairs: Pairs) -> ModelInfo:
    metadata = ask(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=name), deadline.left(), pairs)
    config = ask(stub.ModelConfig, service_pb2.ModelConfigRequest(name=name), deadline.left(), pairs)
    return model_info(metadata, config)
