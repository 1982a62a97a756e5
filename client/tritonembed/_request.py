"""One call of the client as KServe requests, and the answers back as vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from ._batches import batches, check_batch_size
from ._deadline import Deadline
from ._errors import ServerError
from ._results import Embeddings
from ._wire import frame, unframe_vectors, vector_dtype

OUTPUTS = ("embedding", "num_tokens")
MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """The request parameters of the wire contract; None leaves the server's default."""

    input_type: str | None = None
    truncate: str | None = None
    dimensions: int | None = None
    embedding_type: str = "float"
    normalize: bool | None = None

    def write(self, parameters: Any) -> None:
        """Put what differs from the defaults into a request's parameters."""
        if self.input_type is not None:
            parameters["input_type"].string_param = self.input_type
        if self.truncate is not None:
            parameters["truncate"].string_param = self.truncate
        if self.dimensions is not None:
            parameters["dimensions"].int64_param = index(self.dimensions)
        if self.embedding_type != "float":
            parameters["embedding_type"].string_param = self.embedding_type
        if self.normalize is not None:
            parameters["normalize"].bool_param = self.normalize


class Request(NamedTuple):
    """One request on its way: ``timeout`` is what is left of the call's time, in seconds, or None."""

    message: Any
    count: int
    timeout: float | None


class Call:
    """What one call of the client asks for; the clock of its timeout starts here."""

    def __init__(
        self,
        model: str,
        tensor: str,
        elements: Iterable[bytes],
        options: Options,
        batch_size: int,
        timeout: float | None,
    ) -> None:
        check_batch_size(batch_size)
        self._model = model
        self._tensor = tensor
        self._dtype = vector_dtype(options.embedding_type)
        self._options = options
        self._batches = batches(elements, batch_size)
        self._deadline = Deadline(timeout)

    def requests(self) -> Iterator[Request]:
        """The requests, in order, each made when it is asked for."""
        for batch in self._batches:
            timeout = self._deadline.left()
            yield Request(self._message(batch, timeout), len(batch), timeout)

    def _message(self, batch: list[bytes], timeout: float | None) -> Any:
        message = service_pb2.ModelInferRequest(model_name=self._model, raw_input_contents=[frame(batch)])
        message.inputs.add(name=self._tensor, datatype="BYTES", shape=(len(batch), 1))
        for output in OUTPUTS:
            message.outputs.add(name=output)
        self._options.write(message.parameters)
        if timeout is not None:
            # Triton drops a request whose time ran out in its queue; it does not look at gRPC's deadline for that.
            microseconds = min(max(int(timeout * 1e6), 1), MAX_INT64)
            message.parameters["timeout"].int64_param = microseconds
        return message

    def read(self, response: Any, count: int) -> Embeddings:
        """The vectors of an answer for ``count`` elements: views of its bytes, not to be given out."""
        contents = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
        for output in OUTPUTS:
            if output not in contents:
                raise ServerError(f"the answer lacks the raw content of output {output}")
        num_tokens = contents["num_tokens"]
        if len(num_tokens) != 4 * count:
            raise ServerError(f"output num_tokens: {len(num_tokens)} bytes are not {count} INT32 numbers")
        vectors = unframe_vectors(contents["embedding"], count, self._dtype)
        return Embeddings(vectors, np.frombuffer(num_tokens, "<i4"))

    def joined(self, answers: Sequence[Embeddings]) -> Embeddings:
        """All answers as one, in memory of its own; without any, no rows of the asked number of columns (or 0)."""
        if not answers:
            return Embeddings(np.empty((0, self._columns()), self._dtype), np.empty(0, np.int32))
        if len({answer.vectors.shape[1] for answer in answers}) > 1:
            raise ServerError("output embedding: the number of dimensions changed during the call")
        vectors: npt.NDArray[Any] = np.concatenate([answer.vectors for answer in answers])
        return Embeddings(vectors, np.concatenate([answer.num_tokens for answer in answers]))

    def _columns(self) -> int:
        dimensions = self._options.dimensions or 0
        return -(-dimensions // 8) if self._options.embedding_type in ("binary", "ubinary") else dimensions
