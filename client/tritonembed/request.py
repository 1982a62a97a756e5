"""One call of the client as KServe requests, and the answers back as embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from time import monotonic
from typing import Any, Protocol, TypedDict, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from tritonembed_protocol.framing import FramingError, frame, is_without_vectors, unframe, unframe_vectors
from tritonembed_protocol.limits import MAX_INT64
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import (
    DEFAULT_OUTPUT_TYPE,
    DENSE,
    MULTI_VECTOR,
    PRIORITY_LEVELS,
    SPARSE,
    TENSORS,
    EmbeddingType,
    InputType,
    Output,
    Priority,
    Truncate,
    output_type,
)

from ._errors import DeadlineExceededError, InvalidArgumentError, ServerError
from ._results import EmbeddingResult, names_of, read_multi_vector, read_sparse
from .inputs import TokenIds, batches, check_batch_size, encode_texts, encode_token_ids

# The shortest input that every model takes.
PROBES = {"text": b"a", "token_ids": bytes(4)}
# Options that are numbers, and the least of each.
NUMBERS = {"dimensions": 1, "chunk_tokens": 1, "chunk_overlap": 0, "top_k": 1}
# Seconds, thirty years: much more would not fit into gRPC's own clock.
LONGEST = 1e9


class VectorOptions(TypedDict, total=False):
    """What a call asks of its vectors; see EmbeddingClient.embed. What is left out is the server's default."""

    dimensions: int | None
    embedding_type: EmbeddingType
    normalize: bool | None
    priority: Priority
    embedding_space: str | None
    adapter: str | None
    outputs: str | Sequence[Output] | None
    top_k: int | None
    sparse_threshold: float | None
    return_tokens: bool


class PromptOptions(VectorOptions, total=False):
    """Options of a call with whole texts."""

    input_type: InputType | None
    prompt_name: str | None
    prompt: str | None
    instruction: str | None


class ChunkOptions(PromptOptions, total=False):
    """Options of a call with texts in chunks."""

    chunk_tokens: int | None
    chunk_overlap: int | None


class Options(ChunkOptions, total=False):
    """Options of a call with texts."""

    truncate: Truncate | None


class Deadline:
    """The time limit of a call: ``timeout`` seconds from now on; None is no limit."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not math.isfinite(timeout):
            raise ValueError("timeout must be a finite number of seconds, or None for no limit")
        self._end = None if timeout is None else monotonic() + min(timeout, LONGEST)

    def left(self) -> float | None:
        """Seconds left, above 0, or None. Raises DeadlineExceededError once there are none."""
        if self._end is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            message = "the timeout passed before all requests were sent"
            raise DeadlineExceededError(message, grpc.StatusCode.DEADLINE_EXCEEDED)
        return left


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One request ready to go. count: inputs. timeout: seconds left of the call's time, or None.

    work: bytes of its input, which is all that a client knows of how long it takes.
    """

    message: Any
    count: int
    work: int
    timeout: float | None
    deadline: Deadline

    def renewed(self) -> PreparedRequest | None:
        """This request with the time that is left now, for sending it again; None if no time is left."""
        if self.timeout is None:
            return self
        try:
            timeout = self.deadline.left()
        except DeadlineExceededError:
            return None
        write_timeout(self.message, timeout)
        return replace(self, timeout=timeout)


AnyResult = TypeVar("AnyResult", covariant=True)


class AnyCall(Protocol[AnyResult]):
    """The requests of a call, and what their answers are read as."""

    def requests(self) -> Iterator[PreparedRequest]:
        """The requests, in order, each made when the caller takes it."""

    def read(self, count: int, response: Any) -> AnyResult:
        """The answer to a request with ``count`` inputs. Raises ServerError if it does not fit the request."""


class Call:
    """What one call of the client asks for: the requests, and how their answers are read.

    Raises InvalidArgumentError and TypeError for options that cannot be sent; all other values are left to the server.
    """

    def __init__(
        self,
        model: str,
        tensor: str,
        batches: Iterator[list[bytes]],
        options: Options | VectorOptions,
        deadline: Deadline,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self._model = model
        self._tensor = tensor
        self._batches = batches
        self._options: dict[str, Any] = {**options}
        self._deadline = deadline
        self._width: int | None = None
        _check(self._options)
        try:
            self._output = output_type(self._options.get("embedding_type", DEFAULT_OUTPUT_TYPE))
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        self.dtype = self._output.dtype
        self.asked = names_of(self._options.get("outputs"))
        self._outputs = outputs or [*(TENSORS[name] for name in self.asked or (DENSE,)), "num_tokens"]

    @classmethod
    def of_texts(
        cls,
        model: str,
        texts: Iterable[str],
        options: PromptOptions,
        batch_size: int,
        timeout: float | None,
        outputs: Sequence[str] | None = None,
    ) -> Call:
        """A call that embeds texts; its time runs from now on. outputs: the tensors to ask for, if not those of the
        options."""
        if isinstance(texts, (str, bytes)):
            # Its letters would be embedded one by one.
            raise TypeError("texts is a single text: put it into a list")
        check_names(options, Options)
        check_batch_size(batch_size)
        return cls(model, "text", batches(texts, encode_texts, batch_size), options, Deadline(timeout), outputs)

    @classmethod
    def of_tokens(
        cls,
        model: str,
        sequences: Iterable[TokenIds],
        options: VectorOptions,
        batch_size: int,
        timeout: float | None,
    ) -> Call:
        """A call that embeds token ids; its time runs from now on."""
        check_names(options, VectorOptions)
        check_batch_size(batch_size)
        return cls(model, "token_ids", batches(sequences, encode_token_ids, batch_size), options, Deadline(timeout))

    @property
    def columns(self) -> int | None:
        """How many columns the result will have, if ``dimensions`` is given, or no dense vectors are asked for."""
        if not self._gives(DENSE):
            return 0
        dimensions = self._options.get("dimensions")
        return None if dimensions is None else self._output.columns(dimensions)

    def _gives(self, name: str) -> bool:
        return name in (self.asked or (DENSE,))

    def probe(self) -> Call:
        """A call with the same options for one short input: its answer has as many columns as all others."""
        options: Any = self._options
        return Call(self._model, self._tensor, iter([[PROBES[self._tensor]]]), options, self._deadline)

    def requests(self) -> Iterator[PreparedRequest]:
        """The requests, in order, each made when the caller takes it."""
        for batch in self._batches:
            timeout = self._deadline.left()
            content = frame(batch)
            message = self._message(content, len(batch), timeout)
            yield PreparedRequest(message, len(batch), len(content), timeout, self._deadline)

    def _message(self, content: bytes, count: int, timeout: float | None) -> Any:
        message = service_pb2.ModelInferRequest(model_name=self._model, raw_input_contents=[content])
        message.inputs.add(name=self._tensor, datatype="BYTES", shape=(count, 1))
        for output in self._outputs:
            message.outputs.add(name=output)
        _write(self._options, message.parameters)
        write_timeout(message, timeout)
        return message

    def read(self, count: int, response: Any) -> EmbeddingResult:
        """The embeddings of the answer to a request with ``count`` inputs: read-only views of its bytes, to be copied.

        Raises ServerError if the answer does not fit the request.
        """
        contents = contents_of(response, self._outputs)
        num_tokens = contents["num_tokens"]
        if len(num_tokens) != 4 * count:
            raise ServerError(f"output num_tokens: {len(num_tokens)} bytes are not {count} INT32 numbers")
        try:
            vectors = self._vectors(contents, count)
            sparse = read_sparse(_elements(contents, SPARSE, count)) if self._gives(SPARSE) else None
            tokens = None
            if self._gives(MULTI_VECTOR):
                tokens = read_multi_vector(_elements(contents, MULTI_VECTOR, count), self.dtype)
        except FramingError as error:
            raise ServerError(str(error)) from None
        self._width = self._width or vectors.shape[1]
        if vectors.shape[1] != self._width:
            # Another model was loaded meanwhile.
            raise ServerError("output embedding: the number of dimensions changed during the call")
        return EmbeddingResult(vectors, np.frombuffer(num_tokens, "<i4"), self.space_of(response), sparse, tokens)

    def _vectors(self, contents: dict[str, bytes], count: int) -> npt.NDArray[Any]:
        """(count, d), or (count, 0) if no dense output is wanted. Raises InvalidArgumentError if there are none."""
        if not self._gives(DENSE):
            return np.empty((count, 0), self.dtype)
        content = contents["embedding"]
        if is_without_vectors(content, count):
            # Triton itself has no name for it: the model's default is another output.
            raise InvalidArgumentError("the model gives no dense vectors: ask for its outputs, sparse or multi_vector")
        return unframe_vectors(content, count, self.dtype)

    def space_of(self, response: Any) -> str | None:
        """The embedding space that an answer names; else the one that was asked for, because the server checked it."""
        if SPACE in response.parameters:
            return str(response.parameters[SPACE].string_param)
        asked: str | None = self._options.get(SPACE)
        return asked


def contents_of(response: Any, outputs: Iterable[str]) -> dict[str, bytes]:
    """The raw contents of an answer, by output. Raises ServerError if it lacks one of ``outputs``."""
    contents = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
    for output in outputs:
        if output not in contents:
            raise ServerError(f"the answer lacks the raw content of output {output}")
    return contents


def _elements(contents: dict[str, bytes], name: str, count: int) -> list[bytes]:
    """The elements of an output. Raises ServerError or FramingError if they are not one per input."""
    elements = unframe(contents[TENSORS[name]])
    if len(elements) != count:
        raise ServerError(f"output {TENSORS[name]}: {len(elements)} elements for {count} inputs")
    return elements


def check_names(options: Iterable[str], known: Any) -> None:
    """Raise TypeError for an option that is not in ``known``, a TypedDict."""
    for name in options:
        if name not in known.__optional_keys__:
            raise TypeError(f"unexpected keyword argument {name!r}")


def _check(options: dict[str, Any]) -> None:
    for name, least in NUMBERS.items():
        number = options.get(name)
        if number is not None and not least <= index(number) <= MAX_INT64:
            raise InvalidArgumentError(f"{name} must be at least {least} and at most the model's")
    if options.get("priority", "bulk") not in PRIORITY_LEVELS:
        raise InvalidArgumentError(f"priority must be one of {', '.join(PRIORITY_LEVELS)}")
    threshold = options.get("sparse_threshold")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise InvalidArgumentError("sparse_threshold must be a number of at least 0")
    for name in ("prompt_name", "prompt", "instruction", "adapter", SPACE):
        check_text(name, options.get(name))


def check_text(name: str, text: Any) -> None:
    """Raise for what is not a str (TypeError) or has no UTF-8 form (InvalidArgumentError), without its words."""
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
    else:
        return
    # Raised out here, so that no cause carries the text.
    raise InvalidArgumentError(f"{name}: a lone surrogate at character {place} has no UTF-8 form")


def _write(options: dict[str, Any], parameters: Any) -> None:
    """Put options that differ from the defaults into a request's parameters."""
    for name in ("input_type", "prompt_name", "prompt", "instruction", "truncate", "adapter", SPACE):
        if options.get(name) is not None:
            parameters[name].string_param = options[name]
    for name in NUMBERS:
        if options.get(name) is not None:
            parameters[name].int64_param = index(options[name])
    if options.get("embedding_type", DEFAULT_OUTPUT_TYPE) != DEFAULT_OUTPUT_TYPE:
        parameters["embedding_type"].string_param = options["embedding_type"]
    if options.get("normalize") is not None:
        parameters["normalize"].bool_param = options["normalize"]
    if (outputs := names_of(options.get("outputs"))) is not None:
        parameters["outputs"].string_param = ",".join(outputs)
    if options.get("sparse_threshold"):
        parameters["sparse_threshold"].double_param = options["sparse_threshold"]
    if options.get("return_tokens"):
        parameters["return_tokens"].bool_param = True
    write_priority(options, parameters)


def write_priority(options: dict[str, Any], parameters: Any) -> None:
    """Put the option `priority` into a request's parameters. Raises InvalidArgumentError for an unknown one."""
    priority = options.get("priority", "bulk")
    if priority not in PRIORITY_LEVELS:
        raise InvalidArgumentError(f"priority must be one of {', '.join(PRIORITY_LEVELS)}")
    level = PRIORITY_LEVELS[priority]
    if level is not None:
        parameters["priority"].uint64_param = level


def write_timeout(message: Any, timeout: float | None) -> None:
    """Put the time that is left into a request's parameters; None is no limit."""
    if timeout is not None:
        # Triton drops a request whose time ran out in its queue; it does not look at gRPC's deadline for that.
        message.parameters["timeout"].int64_param = max(int(timeout * 1e6), 1)
