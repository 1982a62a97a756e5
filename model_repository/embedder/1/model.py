"""Triton model `embedder`: token_ids BYTES -> embedding BYTES, num_tokens INT32."""

import json
import os
import time
from concurrent.futures import Future
from functools import partial

import triton_python_backend_utils as pb_utils

from tritonembed_engine import token_ids, vectors
from tritonembed_engine.abandonment import Abandonment
from tritonembed_engine.errors import DeadlineExceeded, EmbedError, InvalidArgument
from tritonembed_engine.jobs import Job
from tritonembed_engine.metrics import EMBEDDER_COUNTERS, EngineMetrics
from tritonembed_engine.parameters import parse_parameters
from tritonembed_engine.placement import visible_devices
from tritonembed_engine.senders import Senders
from tritonembed_engine.stub import log_as, prepare_process
from tritonembed_engine.triton import (
    answer,
    bytes_tensor,
    end_process_soon,
    refusal,
    repository_of,
    start_up,
    to_bytes_tensor,
)


class TritonPythonModel:
    """One replica of the model: an engine of its own, in a process of its own."""

    def initialize(self, args):
        """Load the model onto the device that Triton gave this instance."""
        with start_up():
            devices = visible_devices(args, json.loads(args["model_config"]), os.environ.get("CUDA_VISIBLE_DEVICES"))
            prepare_process(devices)
            log_as(args["model_instance_name"])
            # Only now: these import torch, which reads the environment once.
            from tritonembed_engine.factory import create_engine
            from tritonembed_engine.model.files import read_model_files
            from tritonembed_engine.prompt_lengths import PromptLengths
            from tritonembed_engine.settings import read_settings

            settings = read_settings(repository_of(args))
            self._files = read_model_files(settings.model, settings.revision, settings.max_model_len)
            self._prompts = PromptLengths(self._files)
            device = "cpu" if devices is None else "cuda"
            self._engine = create_engine(settings, self._files, device, self._count_batch, end_process_soon)
            ahead = settings.engine.batches_ahead_on(device)
        self._senders = Senders(ahead, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        name = args["model_instance_name"]
        self._metrics = EngineMetrics(pb_utils, name, EMBEDDER_COUNTERS, self._engine.executor.name)

    def execute(self, requests):
        """Answer the requests of one Triton batch; a wrong one gets its own error."""
        parsed = self._check_ids([self._parse(request) for request in requests])
        jobs = [item[1] for item in parsed if not isinstance(item, Exception)]
        sentences = sum(len(job.sentences) for job in jobs)
        split = self._engine.splits(jobs)
        later = self._senders.want(len(requests), sentences, waiting=self._engine.waiting, split=split)
        computed = iter(self._engine.submit_all(jobs, wait=not later))
        futures = [_failed(item) if isinstance(item, Exception) else next(computed) for item in parsed]
        responses = [partial(self._respond, item, future) for item, future in zip(parsed, futures, strict=True)]
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
        """What the request asks for and the engine's job, or what is wrong with it."""
        try:
            parameters = parse_parameters(request.parameters())
            vectors.check_dimensions(parameters.dimensions, self._engine.executor.dimensions)
            skip = self._prompts.skip(parameters)
            sentences = bytes_tensor(request, "token_ids")
            token_ids.check_lengths(sentences, self._files.max_length)
            if self._engine.executor.refused_id is not None:
                token_ids.check_without(sentences, self._engine.executor.refused_id)
        except Exception as error:
            return error
        # KServe's `timeout`, in microseconds; Triton's queue enforces it too, but not once a request is here.
        timeout = request.timeout()
        deadline = time.monotonic() + timeout / 1e6 if timeout else None
        normalize = vectors.wants_unit_length(parameters, self._files.normalize)
        return parameters, Job(sentences, deadline, normalize, Abandonment(request.is_cancelled), skip)

    def _check_ids(self, parsed):
        """Replace what holds ids outside the vocabulary; looked at one by one only where there is any."""
        sentences = [ids for item in parsed if not isinstance(item, Exception) for ids in item[1].sentences]
        if token_ids.in_vocabulary(sentences, self._files.vocab_size):
            return parsed
        checked = []
        for item in parsed:
            try:
                if not isinstance(item, Exception):
                    token_ids.check_vocabulary(item[1].sentences, self._files.vocab_size)
                checked.append(item)
            except InvalidArgument as error:
                checked.append(error)
        return checked

    def _respond(self, item, future):
        """The response to a request, parsed as `item`, whose future is done or will be."""
        try:
            found = future.result()
            parameters, job = item
            rows = vectors.finish(found, parameters, job.normalize, self._files.truncate_dim)
            return answer(
                to_bytes_tensor("embedding", vectors.row_bytes(rows)),
                pb_utils.Tensor("num_tokens", token_ids.lengths_of(job.sentences).reshape(-1, 1)),
            )
        except Exception as error:
            return self._refuse(error)

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


def _failed(error):
    future = Future()
    future.set_exception(error)
    return future
