"""The Triton side of one replica: requests of Triton's in, tensors out, through an engine of its own.

For use inside a stub only. A model's model.py says what its requests ask for and which tensors answer them.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonembed_engine.errors import DeadlineExceeded, EmbedError, InvalidArgument
from tritonembed_engine.request import NO_CHOICES, BatchReport, Choices, Key, Request, TokenOutputs
from tritonembed_engine.stub.abandonment import Abandonment
from tritonembed_engine.stub.metrics import (
    CACHE_METRICS,
    EMBEDDER_COUNTERS,
    LOAD_GAUGES,
    QUALITY_METRICS,
    EngineMetrics,
)
from tritonembed_engine.stub.placement import visible_devices
from tritonembed_engine.stub.process import announce, log_as, prepare_process
from tritonembed_engine.stub.senders import Senders
from tritonembed_engine.stub.triton import (
    answer,
    bytes_tensor,
    check_digests,
    end_process_soon,
    refusal,
    settings_of,
    start_up,
    to_bytes_tensor,
)
from tritonembed_engine.token_ids import Spans, TokenIdLimits, TokenIds
from tritonembed_protocol.space import QUALITY, SPACE, of_adapter
from tritonembed_protocol.types import HEALTH_CHECK_ID

if TYPE_CHECKING:
    from tritonembed_engine.model.adapters import AdapterFiles
    from tritonembed_engine.model.files import ModelFiles


class Asked:
    """A Triton request with valid parameters, and the engine's request once it is made.

    elements: the ids of each sentence. rows: the number of rows of its tensors. skip, spans, normalize, adapter: as in
    `Request`. salt: requests with the same salt share vectors; None: this request shares none.
    """

    def __init__(
        self,
        triton: Any,
        *,
        salt: str | None,
        skip: int = 0,
        normalize: bool = False,
        adapter: str | None = None,
    ) -> None:
        self.triton = triton
        # The backend gives a set, which nothing documents.
        self.outputs = frozenset(triton.requested_output_names())
        self.elements = bytes_tensor(triton, "token_ids")
        self.rows = len(self.elements)
        self.salt, self.skip, self.normalize = salt, skip, normalize
        self.adapter = adapter
        self.spans: Spans | None = None
        self.request: Request
        self.is_known = False
        """Whether the answer needs no forward pass."""

    def choices(self, sentences: TokenIds) -> Choices:  # noqa: ARG002
        """The outputs per token that it asks for (see `Request`)."""
        return NO_CHOICES

    def without_forward(self, sentences: TokenIds) -> TokenOutputs | None:  # noqa: ARG002
        """The item's outputs, if they need no forward pass; else None."""
        return None


_OF_THE_MODEL = {SPACE, QUALITY}
"""Outputs that are the same for every text."""


class _OfTheModel:
    """A Triton request for properties of the model, which needs no forward pass."""

    def __init__(self, asked: Asked) -> None:
        self.outputs = asked.outputs
        self.rows = asked.rows
        self.adapter = asked.adapter


class Replica:
    """One replica of the model: an engine of its own, in a process of its own."""

    files: "ModelFiles"
    adapters: "Mapping[str, AdapterFiles]"
    space: str
    spaces: dict[str, str]
    """The spaces of the adapters, by their names."""
    quality: float | None
    """The part of the ten nearest of the calibration texts that int8 keeps; None in other precisions."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model onto the device that Triton gave this instance."""
        with start_up(args):
            devices = visible_devices(args, json.loads(args["model_config"]), os.environ.get("CUDA_VISIBLE_DEVICES"))
            prepare_process(devices)
            log_as(args["model_instance_name"])
            # Not before prepare_process: they may import torch, which reads the environment only once.
            from tritonembed_engine.factory import create_engine
            from tritonembed_engine.model.adapters import read_adapters
            from tritonembed_engine.model.files import read_model_files
            from tritonembed_engine.model.space import embedding_space

            announce("reading the model's files")
            settings = settings_of(args)
            template = settings.engine.instruction_template
            self.files = read_model_files(settings.model, settings.revision, settings.max_model_len, template)
            self.adapters = read_adapters(settings, self.files)
            digests = {name: one.digest for name, one in self.adapters.items()}
            check_digests(digests, json.loads(args["model_config"]))
            device = "cpu" if devices is None else "cuda"
            self.engine = create_engine(
                settings, self.files, device, self._count_batch, end_process_soon, self.adapters
            )
            ahead = settings.engine.batches_ahead_on(device)
            announce("reading the model's digest")
            self.space = embedding_space(settings, self.files, self.engine.executor.dtype)
            self.spaces = {name: of_adapter(self.space, digest) for name, digest in digests.items()}
            # Only the openvino executor quantizes, so the others have no quality.
            self.quality = getattr(self.engine.executor, "quality", None)
            self.prepare()
        self._limits = TokenIdLimits(
            self.files.max_length,
            self.files.vocab_size,
            self.engine.executor.refused_id,
            self.files.has_token_types,
        )
        self._senders = Senders(ahead, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        name = args["model_instance_name"]
        labels = {"executor": self.engine.executor.name, "embedding_space": self.space}
        self._caches = self.engine.cache is not None
        names = EMBEDDER_COUNTERS | LOAD_GAUGES | (CACHE_METRICS if self._caches else {})
        names |= {} if self.quality is None else QUALITY_METRICS
        self._metrics = EngineMetrics(pb_utils, name, names, self._load, **labels)
        if self.quality is not None:
            self._metrics.add(quantization_quality=self.quality)

    def prepare(self) -> None:
        """Called once, when the engine is there."""

    def ask(self, request: Any) -> Asked:
        """What a request asks for. Raises an error, which is its answer."""
        raise NotImplementedError

    def tensors(self, asked: Any, found: Any) -> list[Any]:
        """The tensors that answer a request. found: float32 [sentences or spans, dimensions], of the engine."""
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer the requests of one Triton batch. A bad request gets its own error."""
        asked = self._read_ids([self._parse(request) for request in requests])
        good = [item.request for item in asked if isinstance(item, Asked) and not item.is_known]
        sentences = sum(len(request.sentences) for request in good)
        split, short, waiting = self.engine.splits(good), self.engine.is_short(good), self.engine.waiting
        later = self._senders.want(len(requests), sentences, waiting=waiting, split=split, short=short)
        self.engine.add(good, wait=not later)
        if later:
            futures = [_future_of(item) for item in asked]
            responses = [partial(self._respond, item) for item in asked]
            rows = [item.rows if isinstance(item, Asked) else 0 for item in asked]
            self._senders.hand_over(requests, futures, responses, rows)
            return None
        return [self._respond(item) for item in asked]

    def finalize(self) -> None:
        """Free the model's memory."""
        self._senders.finish()
        self.engine.close()
        self._metrics.close()

    def _parse(self, request: Any) -> "Asked | _OfTheModel | Exception":
        """What the request asks for, or the error that is its answer."""
        try:
            asked = self.ask(request)
            return _OfTheModel(asked) if asked.outputs and asked.outputs <= _OF_THE_MODEL else asked
        except Exception as error:
            return error

    def _read_ids(self, asked: list[Any]) -> list[Any]:
        """Check and join the ids of all requests at once. Only if some are wrong, each request is looked at alone."""
        good = [item for item in asked if isinstance(item, Asked)]
        try:
            together = self._limits.read([element for item in good for element in item.elements])
            for item, sentences in zip(good, together.split([len(item.elements) for item in good]), strict=True):
                self._take(item, sentences)
            return asked
        except InvalidArgument:
            return [self._read_alone(item) if isinstance(item, Asked) else item for item in asked]

    def _read_alone(self, item: Asked) -> Asked | InvalidArgument:
        try:
            self._take(item, self._limits.read(item.elements))
            return item
        except InvalidArgument as error:
            return error

    def _take(self, item: Asked, sentences: TokenIds) -> None:
        """Make an item's request of the engine, or answer it at once."""
        item.request = self._request(item, sentences)
        known = item.without_forward(sentences)
        if known is not None:
            item.is_known, item.request.token_outputs = True, known

    def _request(self, item: Asked, sentences: TokenIds) -> Request:
        # KServe's `timeout` in microseconds. Triton's queue enforces it too, but only while a request is there.
        timeout = item.triton.timeout()
        return Request(
            sentences,
            deadline=time.monotonic() + timeout / 1e6 if timeout else None,
            normalize=item.normalize,
            is_abandoned=Abandonment(item.triton.is_cancelled),
            skip=item.skip,
            spans=item.spans,
            choices=item.choices(sentences),
            keys=self._keys(item),
            adapter=item.adapter,
            is_check=item.triton.request_id() == HEALTH_CHECK_ID,
        )

    def _keys(self, item: Asked) -> "list[Key] | None":
        """By vector, all that it depends on besides the model; None if the vectors are not shared."""
        salt, skip, adapter = item.salt, item.skip, item.adapter
        if salt is None or not self._caches:
            return None
        return [(salt, skip, ids, adapter) for ids in item.elements]

    def _respond(self, item: "Asked | _OfTheModel | Exception") -> Any:
        """The response to one request, whose answer is there or will be."""
        try:
            if isinstance(item, Exception):
                return self._refuse(item)
            if isinstance(item, _OfTheModel):
                return answer(*self._of_the_model(item))
            # A model that answers without a forward pass has no dense vectors.
            found = np.zeros((item.rows, 0), np.float32) if item.is_known else item.request.result()
            return answer(*self.tensors(item, found), *self._of_the_model(item))
        except Exception as error:
            return self._refuse(error)

    def space_of(self, adapter: str | None) -> str:
        """The embedding space of a request's vectors. Raises InvalidArgument if the model has no such adapter."""
        from tritonembed_engine.model.adapters import files_of

        files_of(self.files, self.adapters, adapter)
        return self.space if adapter is None else self.spaces[adapter]

    def _of_the_model(self, item: "Asked | _OfTheModel") -> list[Any]:
        """The tensors of `_OF_THE_MODEL` that the request asks for and that are known."""
        tensors = []
        if SPACE in item.outputs:
            tensors.append(to_bytes_tensor(SPACE, [self.space_of(item.adapter).encode()] * item.rows))
        if QUALITY in item.outputs and self.quality is not None:
            tensors.append(pb_utils.Tensor(QUALITY, np.full((item.rows, 1), self.quality)))
        return tensors

    def _count_batch(self, report: BatchReport) -> None:
        if self._caches:
            cache = report.cache
            self._metrics.add(
                cache_hits=cache.hits,
                cache_shared=cache.shared,
                cache_misses=cache.misses,
                cache_evictions=cache.evictions,
                cache_bytes=cache.bytes,
            )
        self._metrics.add(
            sentences=report.sentences,
            tokens=report.tokens,
            batches=1 if report.sentences else 0,
            batch_capacity_tokens=report.capacity,
            compute_seconds=report.compute_seconds,
            embedded_requests=report.requests,
            queue_seconds=report.queue_seconds,
            request_compute_seconds=report.request_compute_seconds,
        )

    def _load(self) -> dict[str, float]:
        load = self.engine.load()
        return {"queued_requests": load.queued, "running_requests": load.running, "load": load.seconds}

    def _refuse(self, error: Exception) -> Any:
        if isinstance(error, DeadlineExceeded):
            self._metrics.add(expired_requests=1)
        elif isinstance(error, EmbedError):
            self._metrics.add(refused_requests=1)
        return refusal(error)


def _future_of(item: "Asked | _OfTheModel | Exception") -> "Future[Any]":
    """A future that is done when the item can be answered: at once if nothing is computed for it."""
    if isinstance(item, Asked) and not item.is_known:
        return item.request.future
    future: Future[Any] = Future()
    future.set_result(None)
    return future
