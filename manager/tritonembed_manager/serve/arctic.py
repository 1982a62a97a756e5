"""Arctic Inference's own gRPC API over the dispatcher, for clients that speak it already.

As in its own server, a bad request is answered with status OK and its `error` set. What is no fault of the request (no
server, overload, a deadline) is a gRPC status, as for every other client of this endpoint.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from tritonembed import ServerError
from tritonembed_manager.serve import arctic_messages
from tritonembed_manager.serve.arctic_aborts import Aborted, Aborts
from tritonembed_manager.serve.arctic_messages import BadRequest
from tritonembed_manager.serve.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.serve.grpc_health import why_not
from tritonembed_manager.serve.kserve_grpc import refuse
from tritonembed_manager.serve.model import Dispatcher, DispatchError

SERVICE = "arctic_inference.InferenceService"
_FAULTS_OF_THE_REQUEST = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
)
_TASK = "embed"
_log = logging.getLogger(__name__)


class Settings(Protocol):
    """What of a WorkerConfig matters here."""

    @property
    def model(self) -> str:
        """The one model_name that requests may have; what GetReplicaInfo says."""


def add_arctic(
    server: grpc.aio.Server,
    dispatcher: Dispatcher,
    settings: Settings,
    is_serving: Callable[[], bool],
    aborts: Aborts | None = None,
) -> None:
    """Let a server answer for arctic_inference.InferenceService.

    is_serving: False from the moment it drains. aborts: what is in flight, shared with the other workers.
    """
    service = _Service(dispatcher, settings.model, is_serving, Aborts() if aborts is None else aborts)
    handlers = {
        # As bytes both ways: the answer is put together without protobuf.
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
    def __init__(self, dispatcher: Dispatcher, model: str, is_serving: Callable[[], bool], aborts: Aborts) -> None:
        self._dispatcher = dispatcher
        self._model = model
        self._is_serving = is_serving
        self._aborts = aborts

    async def encode(self, message: bytes, context: Any) -> bytes:
        request_id = ""
        try:
            request = arctic_messages.read_encode(message)
            request_id = request.request_id
            infer = arctic_messages.to_infer_request(request, self._model)
            with self._aborts.in_flight(request_id):
                answer = await self._dispatcher.infer(
                    infer, timeout=context.time_remaining(), metadata=context.invocation_metadata()
                )
            return arctic_messages.to_encode_response(request, answer)
        except BadRequest as error:
            return arctic_messages.to_error_response(request_id, str(error))
        except Aborted:
            return arctic_messages.to_error_response(request_id, "aborted")
        except DispatchError as error:
            if error.code in _FAULTS_OF_THE_REQUEST:
                return arctic_messages.to_error_response(request_id, error.message)
            return await refuse(context, error)
        except ServerError as error:
            _log.error("a server's answer cannot be passed on: %s", error.message)
            return await refuse(context, DispatchError(grpc.StatusCode.INTERNAL, error.message))

    async def abort(self, request: arctic.AbortRequest, _context: Any) -> arctic.AbortResponse:
        if not request.request_id:
            return arctic.AbortResponse(success=False, message="request_id is empty")
        found = await self._aborts.abort_everywhere(request.request_id)
        return arctic.AbortResponse(
            success=found, message="aborted" if found else "no request is in flight under that request_id"
        )

    async def replica_info(self, _request: arctic.ReplicaInfoRequest, _context: Any) -> arctic.ReplicaInfoResponse:
        serving = set(self._dispatcher.serving())
        ready = [server.id in serving for server in self._dispatcher.servers() for _replica in range(server.replicas)]
        infos = [
            arctic.SingleReplicaInfoResponse(model_name=self._model, task=_TASK, ready=is_ready) for is_ready in ready
        ]
        return arctic.ReplicaInfoResponse(replica_infos=infos, n_replicas=len(ready), n_healthy_replicas=sum(ready))

    async def health_check(self, _request: arctic.HealthCheckRequest, _context: Any) -> arctic.HealthCheckResponse:
        why = why_not(self._dispatcher, self._is_serving)
        return arctic.HealthCheckResponse(healthy=not why, message=why)
