"""The Triton side of a tokenizer: from Triton's requests to token ids. For use inside a stub only.

A model's model.py loads the tokenizer and reads what requests ask for.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.stub.metrics import TOKENIZER_COUNTERS, EngineMetrics
from tritonembed_engine.stub.process import leave_out_torch, prepare_process
from tritonembed_engine.stub.triton import answer, refusal, settings_of, start_up, to_bytes_tensor

if TYPE_CHECKING:
    from tritonembed_engine.settings import ModelSettings


class TokenizerInstance:
    """One of many instances. Each has a process of its own and works in one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's tokenizer, but not its weights."""
        with start_up(args):
            prepare_process(visible_gpus=None)
            leave_out_torch()
            settings = settings_of(args)
            self._max_bytes = settings.engine.max_request_bytes
            self.tokenizer = self.load(settings)
        self._metrics = EngineMetrics(pb_utils, args["model_instance_name"], TOKENIZER_COUNTERS)

    def load(self, settings: "ModelSettings") -> Any:
        """The model's tokenizer: with `encode_requests`, and with `truncated`, the number of texts cut so far."""
        raise NotImplementedError

    def ask(self, request: Any) -> Any:
        """A tuple for `encode_requests`, whose first element is the texts; or the tensor that answers the request.

        Raises the error that answers the request.
        """
        raise NotImplementedError

    def check_size(self, size: int) -> None:
        """size: bytes of all that is tokenized for a request. Raises InvalidArgument."""
        if size > self._max_bytes:
            raise InvalidArgument("text", f"{size} bytes in one request are over the limit of {self._max_bytes}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one Triton batch. A bad request gets its own error."""
        asked = [self._parse(request) for request in requests]
        jobs = [item for item in asked if isinstance(item, tuple)]
        before = self.tokenizer.truncated
        results = iter(self.tokenizer.encode_requests(jobs))
        self._metrics.add(
            tokenized_sentences=sum(len(job[0]) for job in jobs),
            truncated_sentences=self.tokenizer.truncated - before,
        )
        return [_respond(next(results) if isinstance(item, tuple) else item) for item in asked]

    def finalize(self) -> None:
        """Send the last counts to Triton's metrics."""
        self._metrics.close()

    def _parse(self, request: Any) -> Any:
        try:
            return self.ask(request)
        except Exception as error:
            return error


def _respond(result: Any) -> Any:
    if isinstance(result, Exception):
        return refusal(result)
    return answer(to_bytes_tensor("token_ids", result) if isinstance(result, list) else result)
