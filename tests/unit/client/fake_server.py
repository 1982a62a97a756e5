"""A small KServe server in this process, on a free port of the loopback, for faults and order.

It embeds the text "17" as the vector [17, 17, …] and counts one token per character. A test changes this through
``infer``, which is called for every ModelInfer with the request and gRPC's context.
"""

import json
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tritonembed_protocol.space import SPACE

DIMENSIONS = 10
DTYPES = {"float": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


def elements(request):
    """The elements of a request's input, read by Triton's own client library."""
    return [bytes(element) for element in deserialize_bytes_tensor(request.raw_input_contents[0])]


def parameters(request):
    """The request's parameters as plain values."""
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}


def respond(vectors, num_tokens):
    """A response with these vectors (bytes each) and token counts, written by Triton's own client library."""
    response = service_pb2.ModelInferResponse(model_name="embedding", model_version="1")
    response.outputs.add(name="num_tokens", datatype="INT32", shape=(len(vectors), 1))
    response.outputs.add(name="embedding", datatype="BYTES", shape=(len(vectors), 1))
    response.raw_output_contents.append(np.array(num_tokens, "<i4").tobytes())
    array = np.empty(len(vectors), dtype=object)
    array[:] = vectors
    response.raw_output_contents.append(serialize_byte_tensor(array).item())
    return response


def embed(request, _context=None):
    """The fake embedding of a request."""
    asked = parameters(request)
    dimensions = asked.get("dimensions", DIMENSIONS)
    kind = asked.get("embedding_type", "float")
    columns = -(-dimensions // 8) if kind in ("binary", "ubinary") else dimensions
    values = []
    for element in elements(request):
        if request.inputs[0].name == "token_ids":
            values.append(sum(struct.unpack(f"<{len(element) // 4}i", element)))
        else:
            values.append(float(element) if element.isdigit() else 0)
    vectors = [np.full(columns, value, DTYPES[kind]).tobytes() for value in values]
    size = 4 if request.inputs[0].name == "token_ids" else 1
    return respond(vectors, [len(element) // size for element in elements(request)])


class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, credentials=None, threads=32, port=0):
        self.infer = embed
        self.requests = []
        self.metadata = []
        self.time_left = []
        self.models = ["embedding", "embedder"]
        self.labels = []
        self.tells_its_space = False
        self.ready, self.has_servers = True, True  # not while a manager starts or ends
        self.asked = 0
        self.cancelled = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    def close(self, grace=None):
        """Break the requests in flight, or let them finish within `grace` seconds.

        A client whose connection is just closing may log the break into the output of the next test.
        """
        self._server.stop(grace).wait()
        self._pool.shutdown()

    def ModelInfer(self, request, context):
        if not self.tells_its_space and [output.name for output in request.outputs] == [SPACE]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output")
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.time_left.append(context.time_remaining())
        return self.infer(request, context)

    def ServerReady(self, _request, _context):
        self.asked += 1
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(self, _request, context):
        if not self.has_servers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no server is ready")
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0", extensions=["classification"])

    def ModelMetadata(self, request, context):
        if request.name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        response = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], platform="python")
        response.inputs.add(name="text", datatype="BYTES", shape=(-1, 1))
        response.outputs.add(name="embedding", datatype="BYTES", shape=(-1, 1))
        return response

    def ModelConfig(self, request, _context):
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=1024)
        if request.name == "embedder":
            # Another model's width, as in a repository written by hand.
            config.parameters["dimensions"].string_value = "7"
        if self.labels:
            config.parameters["labels"].string_value = json.dumps(self.labels)
        return service_pb2.ModelConfigResponse(config=config)


class Gate:
    """An ``infer`` that holds every request until `open`, and counts the requests that were cancelled meanwhile."""

    made: ClassVar[list] = []

    def __init__(self, hold=lambda _request: True):
        Gate.made.append(self)
        self._hold = hold
        self._open = threading.Event()
        self._changed = threading.Condition()
        self.inside = 0
        self.most = 0
        self.ended = 0

    def __call__(self, request, context):
        if not self._hold(request):
            return embed(request)
        if not context.add_callback(self._end):
            self._end()  # The RPC is over already.
        with self._changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._changed.notify_all()
        self._open.wait(100)
        with self._changed:
            self.inside -= 1
        return embed(request)

    def _end(self):
        with self._changed:
            self.ended += 1
            self._changed.notify_all()

    def open(self):
        self._open.set()

    def wait_inside(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: self.inside >= count, 60)

    def wait_ended(self, count):
        """Wait until `count` RPCs are over for the server: answered, cancelled or past their deadline."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended >= count, 60)
