"""Triton model `tokenizer`: text BYTES -> token_ids BYTES, each element one sentence's ids as little-endian int32.

Instead of ids, a request can ask for the tokens as JSON (`tokens`), or for the text of ids (`decoded`).
"""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import triton_python_backend_utils as pb_utils

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import parse_parameters
from tritonembed_engine.stub.metrics import TOKENIZER_COUNTERS, EngineMetrics
from tritonembed_engine.stub.process import leave_out_torch, prepare_process
from tritonembed_engine.stub.triton import answer, bytes_tensor, refusal, settings_of, start_up, to_bytes_tensor
from tritonembed_engine.tokenizing.inspect_parameters import DECODED, TOKENS, parse_inspect_parameters


class _Inspected:
    """A request for tokens or for the text of ids, which is answered already. tensor: its output."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor


class TritonPythonModel:
    """One of many instances. Each has a process of its own and works in one thread."""

    def initialize(self, args):
        """Read the model's tokenizer, but not its weights."""
        with start_up(args):
            prepare_process(visible_gpus=None)
            leave_out_torch()
            from tritonembed_engine.model.files import read_model_files
            from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

            settings = settings_of(args)
            self._max_bytes = settings.engine.max_request_bytes
            template = settings.engine.instruction_template
            files = read_model_files(settings.model, settings.revision, settings.max_model_len, template)
            self._tokenizer = TextTokenizer(files)
        self._metrics = EngineMetrics(pb_utils, args["model_instance_name"], TOKENIZER_COUNTERS)

    def execute(self, requests):
        """Answer the requests of one Triton batch. A bad request gets its own error."""
        parsed = [self._parse(request) for request in requests]
        good = [job for job in parsed if isinstance(job, tuple)]
        before = self._tokenizer.truncated
        results = iter(self._tokenizer.encode_requests(good))
        self._metrics.add(
            tokenized_sentences=sum(len(texts) for texts, _ in good),
            truncated_sentences=self._tokenizer.truncated - before,
        )
        answers = [next(results) if isinstance(job, tuple) else job for job in parsed]
        return [self._respond(result) for result in answers]

    def finalize(self):
        """Send the last counts to Triton's metrics."""
        self._metrics.close()

    def _parse(self, request):
        try:
            # A request that names no outputs asks for all of them.
            asked = list(request.requested_output_names())
            if asked in ([TOKENS], [DECODED]):
                return self._inspect(request, asked[0])
            parameters = parse_parameters(request.parameters())
            texts = bytes_tensor(request, "text")
            # The prompt is prepended to each text.
            prompt = parameters.prompt or parameters.instruction or ""
            size = sum(map(len, texts)) + len(prompt.encode()) * len(texts)
            if size > self._max_bytes:
                raise InvalidArgument("text", f"{size} bytes in one request are over the limit of {self._max_bytes}")
            return texts, parameters
        except Exception as error:
            return error

    def _inspect(self, request, output):
        parameters, inspector = parse_inspect_parameters(request.parameters()), self._tokenizer.inspector
        inspect = inspector.tokens if output == TOKENS else inspector.decoded
        return _Inspected(to_bytes_tensor(output, inspect(bytes_tensor(request, "text"), parameters)))

    def _respond(self, result):
        if isinstance(result, Exception):
            return refusal(result)
        if isinstance(result, _Inspected):
            return answer(result.tensor)
        return answer(to_bytes_tensor("token_ids", result))
