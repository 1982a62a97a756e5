"""Arctic Inference's own gRPC API on the dispatcher, for clients that already use it.

As in Arctic's server, a bad request gets status OK and an answer with its `error` set. A failure that is not the
request's fault (no server, overload, a deadline) is a gRPC status, as for all other clients of this endpoint.

Messages are converted to KServe's and back without parsing vectors. In both formats, a batch of vectors is a sequence
of records of one size, each with a header of a few bytes. So an answer is converted as one matrix whose header columns
are replaced, without a step per vector.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError
from tritonembed.inputs import encode_texts
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.router.apis.authentication import grpc_caller
from tritonembed_manager.router.apis.grpc_arrivals import refuse
from tritonembed_manager.router.apis.grpc_health import outage
from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.protobuf import varint
from tritonembed_manager.router.data.tenants import current_tenant
from tritonembed_manager.router.interfaces import Dispatcher, DispatchError
from tritonembed_protocol.framing import FramingError, frame, is_without_vectors, unframe_vectors
from tritonembed_protocol.status import status_of
from tritonembed_protocol.types import OUTPUT_TYPES

SERVICE = "arctic_inference.InferenceService"
_log = logging.getLogger(__name__)
_FLOAT32 = OUTPUT_TYPES["float"].dtype
_VECTOR_TAG = bytes([arctic.EncodeResponse.EMBEDDING_BYTES_FP32_FIELD_NUMBER << 3 | 2])
"""First byte of a bytes field; its length follows."""


_PATIENCE_S = 1.0
_LONGEST_ID = 1000
"""Bytes of an id. A longer id is looked for in one worker only, so that it can't flood the lines to the others."""


class Aborted(Exception):
    """An Abort ended the wait for an answer."""


@dataclass(eq=False, slots=True)
class _Call:
    task: "asyncio.Task[Any]"
    aborted: bool = False


@dataclass(eq=False, slots=True)
class _Question:
    waiting: int
    answer: "asyncio.Future[bool]"


class Aborts:
    """Encode calls in flight by request_id, so that Abort finds them in this worker and in the others.

    An Abort may arrive at another worker than its Encode. The worker then asks the others over its line to the parent.
    The parent passes such lines on to all workers, including the worker that sent them:

        {"type": "abort", "request_id": id, "asked": key}         end the calls in flight under that id
        {"type": "aborted", "asked": key, "found": bool}           the answer of each other worker

    The calls of one worker.

    send: sends a line to the parent; None if there are no other workers. others: how many other workers answer.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None] | None = None, others: int = 0) -> None:
        self._tell = send
        self._others = others if send else 0
        self._calls: dict[str, set[_Call]] = {}
        self._questions: dict[str, _Question] = {}
        self._name = uuid.uuid4().hex
        self._asked = 0

    def __len__(self) -> int:
        """Number of ids in flight."""
        return len(self._calls)

    @contextmanager
    def in_flight(self, request_id: str) -> Iterator[None]:
        """While the block runs, `abort` with that id cancels the current task, and the block raises Aborted."""
        task = asyncio.current_task()
        assert task is not None
        call = _Call(task)
        self._calls.setdefault(request_id, set()).add(call)
        try:
            yield
        except asyncio.CancelledError:
            if call.aborted and not _cancelled_by_another(task):
                raise Aborted from None
            raise
        finally:
            calls = self._calls[request_id]
            calls.discard(call)
            if not calls:
                del self._calls[request_id]

    def abort(self, request_id: str) -> bool:
        """Cancel every call under that id in this worker. Returns whether there was one."""
        calls = self._calls.get(request_id, ())
        for call in calls:
            if not call.aborted:
                call.aborted = True
                call.task.cancel()
        return bool(calls)

    async def abort_everywhere(self, request_id: str) -> bool:
        """Cancel every call under that id in all workers. Returns whether there was one."""
        found = self.abort(request_id)
        if not self._others or self._tell is None or len(request_id) > _LONGEST_ID:
            return found
        self._asked += 1
        key = f"{self._name}.{self._asked}"
        question = _Question(self._others, asyncio.get_running_loop().create_future())
        self._questions[key] = question
        try:
            self._tell({"type": "abort", "request_id": request_id, "asked": key})
            # A worker that is starting again does not answer.
            return found or await asyncio.wait_for(question.answer, _PATIENCE_S)
        except asyncio.TimeoutError:
            return False
        finally:
            del self._questions[key]

    def receive(self, line: dict[str, Any]) -> None:
        """Handle a line of either type, from the parent."""
        key = line["asked"]
        if line["type"] == "abort":
            if self._tell is not None and not key.startswith(self._name):
                self._tell({"type": "aborted", "asked": key, "found": self.abort(line["request_id"])})
            return
        question = self._questions.get(key)
        if question is not None and not question.answer.done():
            question.waiting -= 1
            if line["found"] or not question.waiting:
                question.answer.set_result(bool(line["found"]))


def _cancelled_by_another(task: "asyncio.Task[Any]") -> bool:
    """Whether the task was cancelled more than once, because its client went away, too. Python 3.10 does not count."""
    uncancel: Callable[[], int] | None = getattr(task, "uncancel", None)
    return uncancel is not None and uncancel() > 0


def add_arctic(
    server: grpc.aio.Server,
    dispatcher: Dispatcher,
    names: ServedNames,
    is_serving: Callable[[], bool],
    aborts: Aborts | None = None,
) -> None:
    """Add arctic_inference.InferenceService to a server.

    names: the values of model_name that requests may have; GetReplicaInfo sends the first.
    is_serving: False from the moment the worker ends. aborts: calls in flight, shared with the other workers.
    """
    service = _Service(dispatcher, names, is_serving, Aborts() if aborts is None else aborts)
    handlers = {
        # Bytes in both directions: the answer is built without protobuf.
        "Encode": grpc.unary_unary_rpc_method_handler(service.encode),
        "Abort": _handler(service.abort, arctic.AbortRequest),
        "GetReplicaInfo": _handler(service.replica_info, arctic.ReplicaInfoRequest),
        "HealthCheck": _handler(service.health_check, arctic.HealthCheckRequest),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _handler(method: Callable[[Any, Any], Awaitable[Any]], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


class _Service:
    def __init__(
        self, dispatcher: Dispatcher, names: ServedNames, is_serving: Callable[[], bool], aborts: Aborts
    ) -> None:
        self._dispatcher = dispatcher
        self._names = names
        self._is_serving = is_serving
        self._aborts = aborts

    async def encode(self, message: bytes, context: Any) -> bytes:
        request_id = ""
        try:
            request = _read_encode(message)
            request_id = request.request_id
            infer = _to_infer_request(request, self._names)
            with self._aborts.in_flight(_of_tenant(request_id)):
                answer = await self._dispatcher.infer(
                    infer,
                    timeout=context.time_remaining(),
                    metadata=context.invocation_metadata(),
                    caller=grpc_caller(context),
                )
            context.set_trailing_metadata(tuple(spaces.headers_of([spaces.in_answer(answer)]).items()))
            return _to_encode_response(request, answer)
        except BadArcticRequest as error:
            self._dispatcher.refused(grpc.StatusCode.INVALID_ARGUMENT)
            return _to_error_response(request_id, str(error))
        except Aborted:
            return _to_error_response(request_id, "aborted")
        except DispatchError as error:
            if status_of(error.code.name).request_fault:
                return _to_error_response(request_id, error.message)
            return await refuse(context, error)
        except ServerError as error:
            _log.error("a server's answer cannot be passed on: %s", error.message)
            return await refuse(context, DispatchError(grpc.StatusCode.INTERNAL, error.message))

    async def abort(self, request: arctic.AbortRequest, _context: Any) -> arctic.AbortResponse:
        if not request.request_id:
            return arctic.AbortResponse(success=False, message="request_id is empty")
        found = await self._aborts.abort_everywhere(_of_tenant(request.request_id))
        return arctic.AbortResponse(
            success=found, message="aborted" if found else "no request is in flight under that request_id"
        )

    async def replica_info(self, _request: arctic.ReplicaInfoRequest, _context: Any) -> arctic.ReplicaInfoResponse:
        serving = set(self._dispatcher.serving())
        replicas = [server for server in self._dispatcher.servers() for _replica in range(server.replicas)]
        ready = [server.id in serving for server in replicas]
        infos = [
            arctic.SingleReplicaInfoResponse(
                model_name=self._names.of_ensemble(server.ensemble), task=self._task(server.ensemble), ready=is_ready
            )
            for server, is_ready in zip(replicas, ready, strict=True)
        ]
        return arctic.ReplicaInfoResponse(replica_infos=infos, n_replicas=len(ready), n_healthy_replicas=sum(ready))

    def _task(self, ensemble: str) -> str:
        names = self._names.of_part(ensemble)
        return self._names.served.task if names is None else names.served.task

    async def health_check(self, _request: arctic.HealthCheckRequest, _context: Any) -> arctic.HealthCheckResponse:
        why = outage(self._dispatcher, self._is_serving)
        return arctic.HealthCheckResponse(healthy=not why, message=why)


def _of_tenant(request_id: str) -> str:
    """The id, unique among all tenants: a tenant can't abort the calls of another tenant."""
    tenant = current_tenant()
    return request_id if tenant is None else f"{tenant.name}\n{request_id}"


class BadArcticRequest(Exception):
    """A request that cannot be answered. The message is for its sender."""


def _read_encode(message: bytes) -> arctic.EncodeRequest:
    """The EncodeRequest in those bytes; without a request_id it gets a new one. Raises BadRequest."""
    try:
        request: arctic.EncodeRequest = arctic.EncodeRequest.FromString(message)
    except DecodeError:
        raise BadArcticRequest("these bytes are not a valid EncodeRequest, or a text in it is not UTF-8") from None
    if not request.request_id:
        request.request_id = str(uuid.uuid4())
    return request


def _to_infer_request(request: arctic.EncodeRequest, names: ServedNames) -> bytes:
    """The encoded ModelInferRequest for `embedding`, or for `embedder` if there are token ids. Raises BadRequest.

    names: the values that model_name may have; it may also be empty.
    """
    found = names.find(request.model_name) if request.model_name else names
    if found is None:
        raise BadArcticRequest("model_name: this server has no such model; GetReplicaInfo names it")
    if found.served.task == "score":
        raise BadArcticRequest(f"model_name: {found.model} scores pairs of a query and a text; it does not embed")
    by_ids = bool(request.token_id_bytes_i32)
    given = len(request.token_id_bytes_i32 if by_ids else request.prompts)
    if given != request.n_prompts:
        what = "token_id_bytes_i32" if by_ids else "prompts"
        raise BadArcticRequest(f"n_prompts is {request.n_prompts}, and {what} has {given}")
    if not given:
        raise BadArcticRequest("there are no prompts")
    elements = list(request.token_id_bytes_i32) if by_ids else encode_texts(list(request.prompts))
    infer = service_pb2.ModelInferRequest(
        model_name=found.served.embedder if by_ids else found.served.name,
        id=request.request_id,
        raw_input_contents=[frame(elements)],
    )
    infer.inputs.add(name="token_ids" if by_ids else "text", datatype="BYTES", shape=(given, 1))
    infer.outputs.add(name="embedding")
    return bytes(infer.SerializeToString())


def _to_encode_response(request: arctic.EncodeRequest, answer: bytes) -> bytes:
    """The encoded EncodeResponse for an encoded ModelInferResponse. Raises ServerError if that has no vectors, and
    BadRequest if its model gives none."""
    try:
        response = service_pb2.ModelInferResponse.FromString(answer)
        place = [output.name for output in response.outputs].index("embedding")
        content = response.raw_output_contents[place]
    except (DecodeError, ValueError, IndexError):
        raise ServerError("the server's answer has no output embedding") from None
    if is_without_vectors(content, request.n_prompts):
        raise BadArcticRequest("the model gives no dense vectors, and this API has no others")
    try:
        vectors = unframe_vectors(content, request.n_prompts, _FLOAT32)
    except FramingError as error:
        raise ServerError(str(error)) from None
    count, dimensions = vectors.shape
    header = _VECTOR_TAG + varint(dimensions * _FLOAT32.itemsize)
    records = np.empty((count, len(header) + dimensions * _FLOAT32.itemsize), np.uint8)
    records[:, : len(header)] = np.frombuffer(header, np.uint8)
    records[:, len(header) :] = vectors.view(np.uint8)
    head = arctic.EncodeResponse(request_id=request.request_id, n_prompts=count, embedding_dim=dimensions)
    return b"".join((head.SerializeToString(), records.data))


def _to_error_response(request_id: str, why: str) -> bytes:
    """The encoded EncodeResponse with the reason why there are no vectors."""
    return bytes(arctic.EncodeResponse(request_id=request_id, error=why).SerializeToString())
