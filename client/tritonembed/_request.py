"""One call of the client as KServe requests, and the answers back as embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from ._deadline import Deadline
from ._errors import DeadlineExceededError, ServerError
from ._options import Options
from ._results import EmbeddingResult
from ._wire import frame, unframe_vectors, vector_dtype

OUTPUTS = ("embedding", "num_tokens")
# The shortest input that every model takes.
PROBES = {"text": b"a", "token_ids": bytes(4)}


@dataclass(frozen=True, slots=True)
class Request:
    """One request ready to go: ``timeout`` is what is left of the call's time, in seconds, or None.

    ``work`` is the size of its input in bytes, all a client knows of how long it takes.
    """

    message: Any
    count: int
    work: int
    timeout: float | None
    deadline: Deadline

    def renewed(self) -> Request | None:
        """The same with the time that is left now, once the first is off the wire; None where there is none."""
        if self.timeout is None:
            return self
        try:
            timeout = self.deadline.left()
        except DeadlineExceededError:
            return None
        _write_timeout(self.message, timeout)
        return replace(self, timeout=timeout)


class Call:
    """What one call of the client asks for: the requests, and how their answers are read."""

    def __init__(
        self, model: str, tensor: str, batches: Iterator[list[bytes]], options: Options, deadline: Deadline
    ) -> None:
        self.dtype = vector_dtype(options.embedding_type)
        self._model = model
        self._tensor = tensor
        self._batches = batches
        self._options = options
        self._deadline = deadline
        self._width: int | None = None

    @property
    def columns(self) -> int | None:
        """How many columns the result will have, where the options say it."""
        return self._options.columns

    def probe(self) -> Call:
        """A call with the same options for one short input: how many columns the server's answer has."""
        return Call(self._model, self._tensor, iter([[PROBES[self._tensor]]]), self._options, self._deadline)

    def requests(self) -> Iterator[Request]:
        """The requests, in order, each made when it is asked for."""
        for batch in self._batches:
            timeout = self._deadline.left()
            content = frame(batch)
            message = self._message(content, len(batch), timeout)
            yield Request(message, len(batch), len(content), timeout, self._deadline)

    def _message(self, content: bytes, count: int, timeout: float | None) -> Any:
        message = service_pb2.ModelInferRequest(model_name=self._model, raw_input_contents=[content])
        message.inputs.add(name=self._tensor, datatype="BYTES", shape=(count, 1))
        for output in OUTPUTS:
            message.outputs.add(name=output)
        self._options.write(message.parameters)
        _write_timeout(message, timeout)
        return message

    def read(self, request: Request, response: Any) -> EmbeddingResult:
        """The embeddings of a request's answer: read-only views of its bytes, to be copied before they are given out.

        Raises ServerError where the answer does not fit the request.
        """
        contents = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
        for output in OUTPUTS:
            if output not in contents:
                raise ServerError(f"the answer lacks the raw content of output {output}")
        num_tokens = contents["num_tokens"]
        if len(num_tokens) != 4 * request.count:
            raise ServerError(f"output num_tokens: {len(num_tokens)} bytes are not {request.count} INT32 numbers")
        vectors = unframe_vectors(contents["embedding"], request.count, self.dtype)
        self._width = self._width or vectors.shape[1]
        if vectors.shape[1] != self._width:
            # Another model was loaded meanwhile.
            raise ServerError("output embedding: the number of dimensions changed during the call")
        return EmbeddingResult(vectors, np.frombuffer(num_tokens, "<i4"))


def _write_timeout(message: Any, timeout: float | None) -> None:
    if timeout is not None:
        # Triton drops a request whose time ran out in its queue; it does not look at gRPC's deadline for that.
        message.parameters["timeout"].int64_param = max(int(timeout * 1e6), 1)
