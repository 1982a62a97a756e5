"""Triton model `embedder`: token_ids BYTES -> embedding BYTES, num_tokens INT32; of long texts also their chunks."""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import json
import time
from concurrent.futures import Future
from functools import partial

import triton_python_backend_utils as pb_utils

from tritonembed_engine import chunks, vectors
from tritonembed_engine.errors import DeadlineExceeded, EmbedError, InvalidArgument
from tritonembed_engine.parameters import check_space, parse_parameters
from tritonembed_engine.request import Request
from tritonembed_engine.stub.abandonment import Abandonment
from tritonembed_engine.stub.metrics import EMBEDDER_COUNTERS, EngineMetrics
from tritonembed_engine.stub.placement import visible_devices
from tritonembed_engine.stub.process import announce, log_as, prepare_process
from tritonembed_engine.stub.senders import Senders
from tritonembed_engine.stub.triton import (
    answer,
    bytes_tensor,
    end_process_soon,
    refusal,
    repository_of,
    start_up,
    to_bytes_tensor,
)
from tritonembed_engine.token_ids import TokenIdLimits
from tritonembed_protocol.framing import rows_as_bytes
from tritonembed_protocol.space import SPACE


class _Asked:
    """A request of Triton's whose parameters are right, and then its request of the engine."""

    __slots__ = ("chunks", "elements", "outputs", "parameters", "request", "skip", "spans", "triton")

    def __init__(self, triton, parameters, skip):
        self.triton, self.parameters, self.skip = triton, parameters, skip
        self.elements, self.chunks, self.spans = bytes_tensor(triton, "token_ids"), None, None
        self.outputs = triton.requested_output_names()
        if parameters.spans is not None:
            if "embedding" in self.outputs:
                raise InvalidArgument("spans", "are for the model embedding_chunks")
            self.elements, self.chunks, self.spans = chunks.unpack_spans(self.elements)
        elif parameters.truncate == "CHUNK":
            self.elements, self.chunks = chunks.unpack(self.elements)
        elif "embedding" not in self.outputs and "chunk_embeddings" in self.outputs:
            # A caller of `embedding_chunks`. Callers of `embedder` that name no output get the two of plain texts.
            raise InvalidArgument("truncate", "must be CHUNK for the vectors of chunks, if there are no spans")

    def tensors_of_chunks(self, found):
        """Vectors and places of the chunks, as far as they are asked for. found: float32 [chunks, dimensions]."""
        tokens = self.request.sentences.lengths if self.spans is None else self.spans.ends - self.spans.starts
        tensors = []
        if "chunk_embeddings" in self.outputs:
            rows = rows_as_bytes(vectors.encode(found, self.parameters))
            tensors.append(to_bytes_tensor("chunk_embeddings", self.chunks.split(rows)))
        if "chunk_spans" in self.outputs:
            tensors.append(to_bytes_tensor("chunk_spans", self.chunks.spans(tokens)))
        return tensors


class _SpaceAlone:
    """A request of Triton's for the embedding space, which needs no forward pass."""

    __slots__ = ("rows",)

    def __init__(self, rows):
        self.rows = rows


class TritonPythonModel:
    """One replica of the model: an engine of its own, in a process of its own."""

    def initialize(self, args):
        """Load the model onto the device that Triton gave this instance."""
        with start_up():
            devices = visible_devices(args, json.loads(args["model_config"]), os.environ.get("CUDA_VISIBLE_DEVICES"))
            prepare_process(devices)
            log_as(args["model_instance_name"])
            announce("importing torch")
            # Not before prepare_process: these import torch, which reads the environment only once.
            from tritonembed_engine.executors.pooling import reason_against_spans
            from tritonembed_engine.factory import create_engine
            from tritonembed_engine.model.files import read_model_files
            from tritonembed_engine.model.space import embedding_space
            from tritonembed_engine.settings import read_settings
            from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths

            announce("reading the model's files")
            settings = read_settings(repository_of(args))
            template = settings.engine.instruction_template
            self._files = read_model_files(settings.model, settings.revision, settings.max_model_len, template)
            self._prompts = PromptLengths(self._files)
            device = "cpu" if devices is None else "cuda"
            self._engine = create_engine(settings, self._files, device, self._count_batch, end_process_soon)
            ahead = settings.engine.batches_ahead_on(device)
            announce("reading the model's digest")
            self._space = embedding_space(settings, self._files, self._engine.executor.dtype)
        refused_id = self._engine.executor.refused_id
        self._no_spans = reason_against_spans(self._files.pooling, self._engine.executor)
        self._limits = TokenIdLimits(self._files.max_length, self._files.vocab_size, refused_id)
        self._senders = Senders(ahead, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        name = args["model_instance_name"]
        labels = {"executor": self._engine.executor.name, "embedding_space": self._space}
        self._metrics = EngineMetrics(pb_utils, name, EMBEDDER_COUNTERS, **labels)

    def execute(self, requests):
        """Answer the requests of one Triton batch. A bad request gets its own error."""
        asked = self._read_ids([self._parse(request) for request in requests])
        good = [item.request for item in asked if isinstance(item, _Asked)]
        sentences = sum(len(request.sentences) for request in good)
        split = self._engine.splits(good)
        later = self._senders.want(len(requests), sentences, waiting=self._engine.waiting, split=split)
        computed = iter(self._engine.submit_all(good, wait=not later))
        futures = [next(computed) if isinstance(item, _Asked) else _done(item) for item in asked]
        responses = [partial(self._respond, item, future) for item, future in zip(asked, futures, strict=True)]
        if later:
            self._senders.hand_over(requests, futures, responses)
            return None
        return [respond() for respond in responses]

    def finalize(self):
        """Free the model's memory."""
        self._senders.finish()
        self._engine.close()
        self._metrics.close()

    def _parse(self, request):
        """What the request asks for, or the error that is its answer."""
        try:
            parameters = parse_parameters(request.parameters())
            check_space(parameters.embedding_space, self._space)
            if request.requested_output_names() == [SPACE]:
                return _SpaceAlone(len(bytes_tensor(request, "token_ids")))
            vectors.check_dimensions(parameters.dimensions, self._engine.executor.dimensions)
            if parameters.spans is not None and self._no_spans:
                raise InvalidArgument("spans", self._no_spans)
            return _Asked(request, parameters, self._prompts.skip(parameters))
        except Exception as error:
            return error

    def _read_ids(self, asked):
        """Check and join the ids of all requests at once. Only if some are wrong, each request is looked at alone."""
        good = [item for item in asked if isinstance(item, _Asked)]
        try:
            together = self._limits.read([element for item in good for element in item.elements])
            for item, sentences in zip(good, together.split([len(item.elements) for item in good]), strict=True):
                item.request = self._request(item, sentences)
            return asked
        except InvalidArgument:
            return [self._read_alone(item) if isinstance(item, _Asked) else item for item in asked]

    def _read_alone(self, item):
        try:
            item.request = self._request(item, self._limits.read(item.elements))
            return item
        except InvalidArgument as error:
            return error

    def _request(self, item, sentences):
        # KServe's `timeout` in microseconds. Triton's queue enforces it too, but only while a request is there.
        timeout = item.triton.timeout()
        return Request(
            sentences,
            deadline=time.monotonic() + timeout / 1e6 if timeout else None,
            normalize=vectors.wants_unit_length(item.parameters, self._files.normalize),
            is_abandoned=Abandonment(item.triton.is_cancelled),
            skip=item.skip,
            spans=item.spans,
        )

    def _respond(self, item, future):
        """The response to one request, whose future is done or will be."""
        try:
            found = future.result()
            if isinstance(item, _SpaceAlone):
                return answer(self._space_of(item.rows))
            request = item.request
            found = vectors.cut(found, item.parameters, request.normalize, self._files.truncate_dim)
            num_tokens = request.sentences.lengths
            more = [] if item.chunks is None else item.tensors_of_chunks(found)
            tensors = []
            if item.chunks is not None and item.spans is None:
                found = item.chunks.means(found, num_tokens, request.normalize)
                num_tokens = item.chunks.sums(num_tokens)
            if "embedding" in item.outputs:
                tensors.append(to_bytes_tensor("embedding", rows_as_bytes(vectors.encode(found, item.parameters))))
            if SPACE in item.outputs:
                more.append(self._space_of(len(item.elements)))
            return answer(*tensors, pb_utils.Tensor("num_tokens", num_tokens.reshape(-1, 1)), *more)
        except Exception as error:
            return self._refuse(error)

    def _space_of(self, rows):
        return to_bytes_tensor(SPACE, [self._space.encode()] * rows)

    def _count_batch(self, report):
        self._metrics.add(
            sentences=report.sentences,
            tokens=report.tokens,
            batches=1,
            batch_capacity_tokens=report.capacity,
            compute_seconds=report.compute_seconds,
            embedded_requests=report.requests,
            queue_seconds=report.queue_seconds,
            request_compute_seconds=report.request_compute_seconds,
        )

    def _refuse(self, error):
        if isinstance(error, DeadlineExceeded):
            self._metrics.add(expired_requests=1)
        elif isinstance(error, EmbedError):
            self._metrics.add(refused_requests=1)
        return refusal(error)


def _done(item):
    """A future of what is not computed: an error, or a request for the space alone."""
    future = Future()
    if isinstance(item, Exception):
        future.set_exception(item)
    else:
        future.set_result(None)
    return future
