"""Arctic's messages as KServe's, and back: a vector is copied, never read.

In both, a batch of vectors is a run of records of one size, a few bytes of header before each. So an answer is turned
into the other form as one matrix whose header column is exchanged, without a step per vector.
"""

import uuid

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError
from tritonembed._wire import encode_texts, frame, unframe_vectors, vector_dtype
from tritonembed_manager.serve.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.serve.infer_message import varint

_FLOAT32 = vector_dtype("float")
_VECTOR_TAG = bytes([arctic.EncodeResponse.EMBEDDING_BYTES_FP32_FIELD_NUMBER << 3 | 2])
"""What a bytes field begins with; its length follows."""


class BadRequest(Exception):
    """A request that cannot be answered, in words for its sender."""


def read_encode(message: bytes) -> arctic.EncodeRequest:
    """The request in those bytes, its request_id made up where it has none. Raises BadRequest."""
    try:
        request: arctic.EncodeRequest = arctic.EncodeRequest.FromString(message)
    except DecodeError:
        raise BadRequest("these bytes are no EncodeRequest, or a text in it is not UTF-8") from None
    if not request.request_id:
        request.request_id = str(uuid.uuid4())
    return request


def to_infer_request(request: arctic.EncodeRequest, model: str) -> bytes:
    """The encoded ModelInferRequest for `embedding`, or for `embedder` when it brings token ids. Raises BadRequest.

    model: the only name, beside none, that the request may have.
    """
    if request.model_name not in ("", model):
        raise BadRequest("model_name is not that of the model served here, which GetReplicaInfo names")
    by_ids = bool(request.token_id_bytes_i32)
    given = len(request.token_id_bytes_i32 if by_ids else request.prompts)
    if given != request.n_prompts:
        what = "token_id_bytes_i32" if by_ids else "prompts"
        raise BadRequest(f"n_prompts is {request.n_prompts}, and {what} has {given}")
    if not given:
        raise BadRequest("there are no prompts")
    elements = list(request.token_id_bytes_i32) if by_ids else encode_texts(list(request.prompts))
    infer = service_pb2.ModelInferRequest(
        model_name="embedder" if by_ids else "embedding",
        id=request.request_id,
        raw_input_contents=[frame(elements)],
    )
    infer.inputs.add(name="token_ids" if by_ids else "text", datatype="BYTES", shape=(given, 1))
    infer.outputs.add(name="embedding")
    return bytes(infer.SerializeToString())


def to_encode_response(request: arctic.EncodeRequest, answer: bytes) -> bytes:
    """The encoded EncodeResponse for an encoded ModelInferResponse. Raises ServerError for one without the vectors."""
    try:
        response = service_pb2.ModelInferResponse.FromString(answer)
        place = [output.name for output in response.outputs].index("embedding")
        content = response.raw_output_contents[place]
    except (DecodeError, ValueError, IndexError):
        raise ServerError("the answer of the server has no output embedding") from None
    vectors = unframe_vectors(content, request.n_prompts, _FLOAT32)
    count, dimensions = vectors.shape
    header = _VECTOR_TAG + varint(dimensions * _FLOAT32.itemsize)
    records = np.empty((count, len(header) + dimensions * _FLOAT32.itemsize), np.uint8)
    records[:, : len(header)] = np.frombuffer(header, np.uint8)
    records[:, len(header) :] = vectors.view(np.uint8)
    head = arctic.EncodeResponse(request_id=request.request_id, n_prompts=count, embedding_dim=dimensions)
    return b"".join((head.SerializeToString(), records.data))


def to_error_response(request_id: str, why: str) -> bytes:
    """The encoded EncodeResponse that says why there are no vectors."""
    return bytes(arctic.EncodeResponse(request_id=request_id, error=why).SerializeToString())
