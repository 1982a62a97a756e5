# Generated from _aio.py by scripts/unasync.py: edit that file, then run `make unasync`.
"""The client."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_protocol.limits import ENDPOINT_PORT
from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.served import FIRST, FIRST_SCORE, ServedModel
from tritonembed_protocol.types import MULTI_VECTOR, SPARSE

from . import _describe, _pipeline
from ._channel import (
    ChannelSettings,
    Metadata,
    Pairs,
    Pem,
    added,
    metadata_pairs,
    split_schemes,
    targets_of,
    with_api_key,
)
from ._chunks import ChunkCall, ChunkCollector, ChunkResult, SpanCall, TextSpans, no_chunks
from ._errors import ModelNotFoundError, TritonEmbedError, UnavailableError
from ._results import Collector, EmbeddingResult, ServerInfo, rows_of, server_info
from ._scores import Ranking, ScoreCall, ScoreCollector, ScoreOptions, ScoreResult, check_top_n, rank
from ._spaces import LONGEST_QUESTION, KnownSpaces, SpaceOfCall
from ._transport import Transport, ask
from .inputs import TokenIds
from .request import (
    AnyCall,
    AnyResult,
    Call,
    ChunkOptions,
    Deadline,
    Options,
    PreparedRequest,
    PromptOptions,
    VectorOptions,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EmbeddingClient:
    """Embeds texts through one Triton server or several, over gRPC.

    ``target``: host:port, or a list of them; all of these servers have the same models. ``model`` takes texts, its
    ``tokens_model`` token ids, its ``chunks_model`` texts to be embedded in chunks; by default those of the same name.
    ``score_model`` scores; by default the first reranker or classifier, or ``model`` if that is given.
    ``tls=True`` encrypts, as a target ``grpcs://host:port`` does. Root certificates (to check the server) and a key
    with its certificate chain (to prove who the client is) are PEM, as a path or as bytes; without root certificates,
    gRPC's own are trusted. ``api_key``: the key of a tenant, for a manager that requires one; by default that of the
    variable TRITONEMBED_API_KEY. ``metadata``: pairs sent with every request. ``max_in_flight``: outstanding requests
    per call and server.
    A server that is silent for ``keepalive_time`` seconds is pinged, and given up after ``keepalive_timeout`` more;
    under 300 s a server may take pings for abuse.

    With several servers, ``policy`` chooses one per request: ``least_loaded`` the server with the fewest outstanding
    bytes of this client's texts, ``round_robin`` each in turn, ``random`` any. If a server breaks, its requests are
    retried on other servers, within their timeout and never twice on the same server. Retries are limited to 20 % of
    the last ten seconds' requests, or 3, or one per server, whichever is more; requests that were in flight on a server
    that broke do not count. Nothing else is retried: neither a wrong request nor an overload. A server that broke or
    shed load is ejected for 0.25 s, longer each time in a row up to 8 s; then one request tries it.

    The client connects at the first request, and reconnects by itself. The blocking client is safe to use from several
    threads. The asyncio client belongs to the event loop of its first call, and a cancelled task cancels its requests.
    Every method raises TritonEmbedError's subclasses for a failed request, and RuntimeError once the client is closed.
    """

    def __init__(
        self,
        target: str | Iterable[str] = f"localhost:{ENDPOINT_PORT}",
        *,
        policy: PolicyName = "least_loaded",
        model: str = FIRST,
        tokens_model: str | None = None,
        chunks_model: str | None = None,
        score_model: str | None = None,
        tls: bool = False,
        root_certificates: Pem | None = None,
        private_key: Pem | None = None,
        certificate_chain: Pem | None = None,
        api_key: str | None = None,
        metadata: Metadata | None = None,
        max_in_flight: int = 8,
        keepalive_time: float = 300.0,
        keepalive_timeout: float = 20.0,
    ) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        targets, tls = split_schemes(targets_of(target), tls=tls)
        self._model = model
        served = ServedModel(model)
        self._tokens_model = tokens_model or served.embedder
        self._chunks_model = chunks_model or served.chunks
        self._scores = ServedModel(score_model or (FIRST_SCORE if served.is_first else model), "score")
        self._labels: dict[str, tuple[str, ...]] = {}
        self._spaces = KnownSpaces()
        self._metadata = with_api_key(metadata_pairs(metadata), api_key)
        self._max_in_flight = max_in_flight * len(targets)
        channels = ChannelSettings(
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
        )
        self._transport = Transport(targets, policy, channels)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; outstanding requests of other threads and tasks fail with CancelledError."""
        self._transport.close()

    def embed(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[Options],
    ) -> EmbeddingResult:
        """The embeddings of any number of texts, in their order; a single str is a TypeError.

        ``batch_size``: texts per request, 1 to 1024. ``timeout``: seconds for the whole call, None for no limit.
        ``metadata``: sent in addition to the client's own. Options:

        - ``input_type``: ``query`` or ``passage``, for models that have prompts.
        - ``prompt_name``: the name of a prompt in the model's config_sentence_transformers.json, to be prepended to
          every text; an unknown name is an error.
        - ``prompt``: the string to be prepended to every text; ``""`` turns the model's default prompt off.
        - ``instruction``: the task of the texts, which are queries, such as "Retrieve passages that answer the
          question". The model's own template makes the prompt of it; a model without a template refuses it. Two of
          ``prompt_name``, ``prompt`` and ``instruction`` are an error; each replaces the prompt of ``input_type``.
        - ``truncate``: the end of a long text that is cut, ``END`` or ``START``; ``NONE`` makes a long text an error;
          ``CHUNK`` embeds it in chunks, and gives the mean of their vectors, weighted by their tokens. The default is
          the model's own end.
        - ``chunk_tokens``, ``chunk_overlap``: with ``CHUNK``, the most tokens of a chunk (the default is the model's
          maximum), and how many of them it shares with the chunk before (the default is 0).
        - ``dimensions``: keep only the first dimensions of each vector, normalised again. The default is all of them.
        - ``embedding_type``: ``float`` (the default), ``float16``, ``int8``, ``uint8``, ``binary`` or ``ubinary``; see
          EmbeddingResult.
        - ``normalize``: whether vectors have length 1. The default is the model's own way.
        - ``priority``: ``interactive`` goes ahead of ``bulk`` (the default) in the server's queue; it is for few, small
          requests.
        - ``embedding_space``: the space that the vectors must be of, as named by an earlier result or ``info``;
        a server with another model or precision refuses the request.
        - ``adapter``: the name of a LoRA adapter of the model, whose vectors and prompts are used.
        - ``outputs``: what to compute of each text, in one forward pass: one or more of ``dense``, ``sparse`` and
          ``multi_vector``, as a list or with commas. A model that can't give one of them refuses the request. The
          default is ``dense``, or the only output that the model has.
        - ``top_k``, ``sparse_threshold``: of ``sparse``, keep only the largest weights, and those above a number.
        - ``return_tokens``: give the tokens of ``sparse``, too, for people.

        The result is ``embeddings`` of shape (n, d) and ``num_tokens`` of shape (n,). No texts give embeddings of shape
        (0, d); without ``dimensions`` one request to the server finds d. Raises InvalidArgumentError for a parameter
        that the server refuses.
        """
        call = Call.of_texts(self._model, texts, options, batch_size, timeout)
        return self._collect(call, rows_of(texts), metadata)

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[Options],
    ) -> Generator[EmbeddingResult, None, None]:
        """Like ``embed``, for more texts than memory holds: gives the result of each request, in order.

        Texts are taken as requests go out, at most twice ``max_in_flight`` requests ahead of the results. The clock of
        ``timeout`` starts now, and also runs while the caller works. No texts give no results.

        Closing the generator cancels the requests in flight. To leave the loop early:
        ``with contextlib.closing(client.iter_embed(texts)) as results``.
        """
        call = Call.of_texts(self._model, texts, options, batch_size, timeout)
        return _owned(self._answers(call, rows_of(texts), metadata))

    def embed_chunks(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[ChunkOptions],
    ) -> ChunkResult:
        """One vector per chunk of each text, and where the chunk is in its text; a text that fits is one chunk.

        Arguments and options are those of ``embed``, without ``truncate``, which is ``CHUNK``. A request has at most
        4096 chunks: for very long texts choose a small ``batch_size``.
        """
        call = ChunkCall.of_texts(self._chunks_model, texts, options, batch_size, timeout)
        result = self._collect_chunks(call, rows_of(texts), metadata)
        if result is not None:
            return result
        none = self.embed([], timeout=timeout, metadata=metadata, truncate="CHUNK", **options)
        return no_chunks(none.embeddings)

    def embed_spans(
        self,
        texts: Iterable[str],
        spans: Iterable[TextSpans],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[PromptOptions],
    ) -> ChunkResult:
        """Late chunking: each text goes through the model whole, and each of its spans gets the mean of its tokens.

        So the vector of a span depends on the rest of the text, too. ``spans``: per text, start and end of one or more
        parts in characters, ``text[start:end]``. Other arguments and options are those of ``embed``, without
        ``truncate``: a text that is too long for the model is an error. For models with mean pooling; others refuse it.
        """
        call = SpanCall.of_spans(self._chunks_model, texts, spans, options, batch_size, timeout)
        result = self._collect_chunks(call, rows_of(texts), metadata)
        if result is not None:
            return result
        none = self.embed([], timeout=timeout, metadata=metadata, **options)
        return no_chunks(none.embeddings)

    def embed_tokens(
        self,
        sequences: Iterable[TokenIds],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[VectorOptions],
    ) -> EmbeddingResult:
        """The embeddings of token id sequences, which include their special tokens; nothing is truncated.

        Options are those of ``embed`` that do not concern texts: ``dimensions``, ``embedding_type``, ``normalize``,
        ``priority``, ``embedding_space``, ``adapter``, ``outputs`` and those of ``sparse``.
        """
        call = Call.of_tokens(self._tokens_model, sequences, options, batch_size, timeout)
        return self._collect(call, rows_of(sequences), metadata)

    def score(
        self,
        query: str,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """The scores of texts for a query, by a reranker or a classifier of pairs; in the order of the texts.

        ``batch_size``, ``timeout`` and ``metadata`` are those of ``embed``. Options:

        - ``truncate``: the end that a text loses if it is too long with its query, ``END`` or ``START``; ``NONE`` makes
          that an error. The query is never cut. The default is the model's own end.
        - ``activation``: ``none`` gives logits, ``sigmoid`` numbers between 0 and 1, ``softmax`` the same over the
          labels of a text. The default is the model's own.
        - ``instruction``: what counts as relevant, for models with a template (Qwen3-Reranker); others refuse it.
        - ``priority``, ``embedding_space``: those of ``embed``.

        Raises InvalidArgumentError for an empty query, or a query that leaves no room for a text.
        """
        call = ScoreCall(self._scores.name, query, texts, options, batch_size, timeout)
        return self._collect_scores(call, rows_of(texts), metadata)

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Ranking:
        """The best texts for a query, the best first. ``top_n``: at most this many; the default is all of them.

        Other arguments and options are those of ``score``. For models with one label.
        """
        check_top_n(top_n)
        call = ScoreCall(self._scores.name, query, texts, options, batch_size, timeout)
        return rank(self._collect_scores(call, rows_of(texts), metadata), top_n)

    def classify(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """The score of each label for each text, by a classifier. Arguments and options are those of ``score``."""
        call = ScoreCall(self._scores.classify, None, texts, options, batch_size, timeout)
        return self._collect_scores(call, rows_of(texts), metadata)

    def is_ready(self, *, timeout: float = 5.0) -> bool:
        """Whether an inference succeeds now, on any of the servers.

        Triton's own readiness stays true when a model's process has died.
        """
        deadline = Deadline(timeout)
        try:
            self.embed(["ready"], timeout=timeout)
        except ModelNotFoundError:
            with suppress(TritonEmbedError):
                self.score("ready", ["ready"], timeout=deadline.left())
                return True
            return False
        except TritonEmbedError:
            return False
        return True

    def _is_starting(self, timeout: float) -> bool:
        """Whether a server is there and none can embed yet (see is_starting)."""
        self._transport.open()
        return _describe.is_starting(self._transport.stubs, timeout, self._metadata)

    def info(self, *, timeout: float = 5.0) -> ServerInfo:
        """The server's name, version and models, and the length and the space of its vectors, found by an inference.

        A server without ``tokens_model`` gives only ``model``; a server that cannot embed now gives no dimensions. With
        several servers, the first that is there.
        """
        self._transport.open()
        deadline = Deadline(timeout)
        for stub in self._transport.stubs[:-1]:
            with suppress(UnavailableError):
                return self._info(stub, deadline)
        return self._info(self._transport.stubs[-1], deadline)

    def _info(self, stub: Any, deadline: Deadline) -> ServerInfo:
        try:
            names = self._model, self._tokens_model
            server, models = _describe.describe(stub, *names, deadline, self._metadata)
        except ModelNotFoundError as error:
            # The server may have nothing but a reranker or classifier.
            names = self._scores.name, self._scores.embedder
            with suppress(ModelNotFoundError):
                server, models = _describe.describe(stub, *names, deadline, self._metadata)
                space = _describe.space(stub, self._scores.embedder, deadline, self._metadata)
                return server_info(server, models, None, space)
            raise error from None
        dimensions = None
        with suppress(TritonEmbedError):
            result = self.embed([], timeout=deadline.left())
            dimensions = result.embeddings.shape[1]
        space = _describe.space(stub, self._tokens_model, deadline, self._metadata)
        quality = _describe.quality(stub, self._tokens_model, space, deadline, self._metadata)
        return server_info(server, models, dimensions, space, quality)

    def _answers(
        self, call: AnyCall[AnyResult], rows: int | None, metadata: Metadata | None
    ) -> Generator[AnyResult, None, None]:
        """``rows``: how many inputs there are, if that is known."""
        self._transport.open()
        space = SpaceOfCall(self._spaces, self._scores.embedder if isinstance(call, ScoreCall) else self._tokens_model)
        return self._read(call, rows, space, added(self._metadata, metadata_pairs(metadata)))

    def _read(
        self, call: AnyCall[AnyResult], rows: int | None, space: SpaceOfCall, pairs: Pairs
    ) -> Generator[AnyResult, None, None]:
        requests = map(space.prepare, call.requests())
        # Looking ahead is free if all inputs are there; waiting for inputs to come would delay the first answer.
        ready = [] if rows is None else list(islice(requests, 2))
        if len(ready) == 1:
            [request] = ready
            response = self._answer(request, space, pairs)
            yield call.read(request.count, response)
            return

        def send(request: PreparedRequest) -> Any:
            return self._transport.send(request, pairs)

        pipeline = _pipeline.answers(chain(ready, requests), send, space.again, self._max_in_flight)
        with closing(pipeline) as answers:
            for request, response, sent in answers:
                self._name_space(request, response, sent, space, pairs)
                yield call.read(request.count, response)

    def _answer(self, request: PreparedRequest, space: SpaceOfCall, pairs: Pairs) -> Any:
        """The answer to a call's only request, with its space."""
        while True:
            try:
                response, sent = self._transport.answer(request, pairs)
            except TritonEmbedError as error:
                following = space.again(request, error)
                if following is None:
                    raise
                request = following
            else:
                break
        self._name_space(request, response, sent, space, pairs)
        return response

    def _name_space(self, request: PreparedRequest, response: Any, sent: Any, space: SpaceOfCall, pairs: Pairs) -> None:
        """Write the space of an answer into it, if a server reports it. sent: the request's call."""
        if space.is_in(request, response) or space.take_header(response, sent.initial_metadata()):
            return
        answer = None
        with suppress(TritonEmbedError):
            question, left = space.question(), request.deadline.left()
            if question is None:
                return
            timeout = LONGEST_QUESTION if left is None else min(left, LONGEST_QUESTION)
            answer = ask(self._transport.infer_of(sent), question, timeout, pairs)
        space.take_answer(answer, response)

    def _collect(self, call: Call, rows: int | None, metadata: Metadata | None) -> EmbeddingResult:
        collector = Collector(rows)
        with closing(self._answers(call, rows, metadata)) as answers:
            for answer in answers:
                collector.add(answer)
        result = collector.result()
        if result is not None:
            return result
        columns = call.columns
        if columns is None:
            probe = self._collect(call.probe(), 1, metadata)
            columns = probe.embeddings.shape[1]
        none: list[Any] = []
        asked = call.asked or ()
        return EmbeddingResult(
            np.empty((0, columns), call.dtype),
            np.empty(0, np.int32),
            sparse=none if SPARSE in asked else None,
            multi_vector=none if MULTI_VECTOR in asked else None,
        )

    def _collect_scores(self, call: ScoreCall, rows: int | None, metadata: Metadata | None) -> ScoreResult:
        collector = ScoreCollector()
        with closing(self._answers(call, rows, metadata)) as answers:
            for answer in answers:
                collector.add(answer)
        return collector.result(self._labels_of(call.model, call.deadline))

    def _labels_of(self, model: str, deadline: Deadline) -> tuple[str, ...]:
        """The labels of a model that scores, asked for once; none if no server reports them."""
        if model not in self._labels:
            for stub in self._transport.stubs:
                with suppress(TritonEmbedError):
                    self._labels[model] = _describe.labels(stub, model, deadline, self._metadata)
                    break
        return self._labels.get(model, ())

    def _collect_chunks(self, call: ChunkCall, rows: int | None, metadata: Metadata | None) -> ChunkResult | None:
        """None if there are no texts."""
        collector = ChunkCollector()
        with closing(self._answers(call, rows, metadata)) as answers:
            for answer in answers:
                collector.add(answer)
        return collector.result()


def _owned(answers: Generator[EmbeddingResult, None, None]) -> Generator[EmbeddingResult, None, None]:
    with closing(answers):
        for answer in answers:
            yield answer.copy()
