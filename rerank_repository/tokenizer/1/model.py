"""Triton model `tokenizer`: query BYTES, text BYTES -> token_ids BYTES, each element the ids of one pair as
little-endian int32. Without `query`, an element has the ids of a text."""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import triton_python_backend_utils as pb_utils

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.score_parameters import parse_score_parameters
from tritonembed_engine.stub.metrics import TOKENIZER_COUNTERS, EngineMetrics
from tritonembed_engine.stub.process import leave_out_torch, prepare_process
from tritonembed_engine.stub.triton import answer, bytes_tensor, refusal, settings_of, start_up, to_bytes_tensor


class TritonPythonModel:
    """One of many instances. Each has a process of its own and works in one thread."""

    def initialize(self, args):
        """Read the model's tokenizer, but not its weights."""
        with start_up(args):
            prepare_process(visible_gpus=None)
            leave_out_torch()
            from tritonembed_engine.model.files import read_model_files
            from tritonembed_engine.tokenizing.pairs import PairTokenizer

            settings = settings_of(args)
            self._max_bytes = settings.engine.max_request_bytes
            self._tokenizer = PairTokenizer(read_model_files(settings.model, settings.revision, settings.max_model_len))
        self._metrics = EngineMetrics(pb_utils, args["model_instance_name"], TOKENIZER_COUNTERS)

    def execute(self, requests):
        """Answer the requests of one Triton batch. A bad request gets its own error."""
        parsed = [self._parse(request) for request in requests]
        good = [job for job in parsed if not isinstance(job, Exception)]
        before = self._tokenizer.truncated
        results = iter(self._tokenizer.encode_requests(good))
        self._metrics.add(
            tokenized_sentences=sum(len(texts) for texts, _, _ in good),
            truncated_sentences=self._tokenizer.truncated - before,
        )
        answers = [job if isinstance(job, Exception) else next(results) for job in parsed]
        return [self._respond(result) for result in answers]

    def finalize(self):
        """Send the last counts to Triton's metrics."""
        self._metrics.close()

    def _parse(self, request):
        try:
            parameters = parse_score_parameters(request.parameters())
            texts = bytes_tensor(request, "text")
            queries = None
            if pb_utils.get_input_tensor_by_name(request, "query") is not None:
                queries = bytes_tensor(request, "query")
            size = sum(map(len, texts)) + sum(map(len, queries or ()))
            if size > self._max_bytes:
                raise InvalidArgument("text", f"{size} bytes in one request are over the limit of {self._max_bytes}")
            return texts, queries, parameters
        except Exception as error:
            return error

    def _respond(self, result):
        if isinstance(result, Exception):
            return refusal(result)
        return answer(to_bytes_tensor("token_ids", result))
