"""A fake Triton server, in the test's event loop, on a free loopback port, with switches for faults.

    async with FakeTriton() as fake:
        fake.fail_first = 1
        channel = grpc.aio.insecure_channel(fake.address)

Vectors depend on the text alone, so all fakes agree unless `vector_sign` differs. A `Front` forwards bytes between the
port and the gRPC server. It can reset connections, and imitates a crash as clients see it.
"""

import asyncio
import hashlib
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tritonembed_protocol.framing import frame
from tritonembed_protocol.space import QUALITY, SPACE, of_another_space

DIMENSIONS = 8
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
STUB_DIED = (
    "in ensemble 'embedding', Failed to process the request(s) for model instance 'embedder_0_0', message: "
    "Stub process 'embedder_0_0' is not healthy."
)
QUEUE_FULL = "[request id: <id_unknown>] Exceeds maximum queue size"
NOT_LOADED = "Request for unknown model: 'embedding' has no available versions"


def vector(text: bytes) -> np.ndarray:
    """The vector of a text: float32 [DIMENSIONS], of length 1."""
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype("<f4")
    return values / np.linalg.norm(values)


def texts(request: service_pb2.ModelInferRequest) -> list[bytes]:
    """The elements of a request's only input."""
    return [bytes(element) for element in deserialize_bytes_tensor(request.raw_input_contents[0])]


def infer_request(*sentences: bytes, **parameters: object) -> service_pb2.ModelInferRequest:
    """A request as clients send it. parameters: KServe's request parameters, of type int, bool or str."""
    array = np.array(sentences, dtype=np.object_)
    content = serialize_byte_tensor(array).item() if sentences else b""
    request = service_pb2.ModelInferRequest(model_name="embedding", raw_input_contents=[content])
    request.inputs.add(name="text", datatype="BYTES", shape=(len(sentences), 1))
    for name, value in parameters.items():
        kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
        setattr(request.parameters[name], f"{kind}_param", value)
    return request


def infer_response(vectors: list[np.ndarray], num_tokens: list[int]) -> service_pb2.ModelInferResponse:
    """An answer of the ensemble `embedding`."""
    response = service_pb2.ModelInferResponse(model_name="embedding", model_version="1")
    response.outputs.add(name="embedding", datatype="BYTES", shape=(len(vectors), 1))
    response.outputs.add(name="num_tokens", datatype="INT32", shape=(len(vectors), 1))
    array = np.empty(len(vectors), dtype=np.object_)
    array[:] = [row.tobytes() for row in vectors]
    response.raw_output_contents.extend([serialize_byte_tensor(array).item(), np.array(num_tokens, "<i4").tobytes()])
    return response


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Switches can be set at any time and hold for later requests. credentials: for TLS."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._credentials = credentials
        self.fail_first = 0
        """Number of requests that fail with `failure` before requests succeed."""
        self.failure = (grpc.StatusCode.UNAVAILABLE, "the fake fails")
        self.unhealthy_after: int | None = None
        """After this many more requests, all fail as if the python stub were dead."""
        self.latency = 0.0
        """Seconds before an answer."""
        self.overloaded = False
        """Answer as if Triton's queue were full."""
        self.loaded = True
        """False: the server listens, but its models are not loaded yet (a slow start)."""
        self.spoil: Callable[[service_pb2.ModelInferResponse], object] = lambda _: None
        """Changes each answer before it is sent, including answers to health checks."""
        self.vector_sign = 1.0
        """-1: vectors differ from those of the other fakes."""
        self.dimensions = DIMENSIONS
        self.repository_failure: tuple[grpc.StatusCode, str] | None = None
        """Error when models are loaded or unloaded, as if --model-control-mode were not explicit."""
        self.requests: list[service_pb2.ModelInferRequest] = []
        """All ModelInfer requests. `metadata` and `time_left` (seconds to the deadline) have one entry for each."""
        self.metadata: list[dict[str, str | bytes]] = []
        self.time_left: list[float | None] = []
        self.calls: list[str] = []
        """Calls of other methods, in order."""
        self.inside = 0
        """Number of requests in progress."""
        self.cancelled = 0
        """Number of requests that their caller cancelled."""
        self.space = ""
        """Its embedding space; empty: it does not know of spaces. Requests for it are in `calls`, as "space"."""
        self.quality = b""
        """The content of the output that says what int8 keeps; empty: it does not know of this output."""
        self.statistics = service_pb2.ModelStatisticsResponse()
        self._released = asyncio.Event()
        self._released.set()
        self._changed = asyncio.Condition()
        self._front = Front()
        self._server = grpc.aio.server(options=OPTIONS)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)

    async def __aenter__(self) -> "FakeTriton":
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """host:port; it stays the same after a crash."""
        return f"127.0.0.1:{self._front.port}"

    async def start(self) -> None:
        if self._credentials is None:
            behind = self._server.add_insecure_port("127.0.0.1:0")
        else:
            behind = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        await self._server.start()
        await self._front.listen(behind)

    async def stop(self) -> None:
        """Stop for good."""
        self.release()
        await self._front.crash()
        await self._server.stop(None)

    def accept_after(self, seconds: float) -> None:
        """Forward the bytes of a new connection only after so long, like a busy machine."""
        self._front.delay = seconds

    def reset(self) -> None:
        """Reset every connection. New connections are accepted."""
        self._front.reset()

    async def crash(self) -> None:
        """Reset every connection and stop listening, as if the process were killed."""
        await self._front.crash()

    async def come_back(self) -> None:
        """Listen on the same port again after a crash."""
        await self._front.listen(self._front.behind)

    def hang(self) -> None:
        """Hold later requests until `release`, except those that are set to fail."""
        self._released.clear()

    def release(self) -> None:
        """Answer the requests that `hang` holds."""
        self._released.set()

    async def wait_inside(self, count: int) -> None:
        """Wait until exactly `count` requests are in progress. Raises TimeoutError after 60 s."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.inside == count), 60)

    async def ModelInfer(self, request, context):
        if [output.name for output in request.outputs] == [SPACE]:
            return await self._tell_space(context)
        if [output.name for output in request.outputs] == [QUALITY]:
            return await self._tell_quality(context)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left.append(context.time_remaining())
        await self._count(1)
        try:
            return await self._infer(request, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await self._count(-1)

    async def _infer(self, request, context):
        if not self.loaded:
            await context.abort(grpc.StatusCode.UNAVAILABLE, NOT_LOADED)
        if self.overloaded:
            await context.abort(grpc.StatusCode.UNAVAILABLE, QUEUE_FULL)
        if self.unhealthy_after is not None:
            self.unhealthy_after -= 1
        stub_died = self.unhealthy_after is not None and self.unhealthy_after < 0
        fails = self.fail_first > 0
        self.fail_first -= fails
        if self.latency:
            await asyncio.sleep(self.latency)
        if stub_died:
            await context.abort(grpc.StatusCode.INTERNAL, STUB_DIED)
        if fails:
            await context.abort(*self.failure)
        await self._released.wait()
        if [tensor.name for tensor in request.inputs] != ["text"] or len(request.raw_input_contents) != 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the fake wants one input, text, as raw content")
        wanted = request.parameters[SPACE].string_param if SPACE in request.parameters else None
        if wanted not in (None, self.space):
            reason = of_another_space(self.space) if self.space else "unknown parameter"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"in ensemble 'embedding', {SPACE}: {reason}")
        found = texts(request)
        vectors = [self.vector_sign * np.resize(vector(text), self.dimensions) for text in found]
        response = infer_response(vectors, [len(text.split()) for text in found])
        response.id = request.id
        self.spoil(response)
        return response

    async def _tell_space(self, context):
        self.calls.append("space")
        await self._released.wait()
        if not self.space:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inference output '{SPACE}'")
        response = service_pb2.ModelInferResponse(model_name="embedder")
        response.outputs.add(name=SPACE, datatype="BYTES", shape=(1, 1))
        response.raw_output_contents.append(frame([self.space.encode()]))
        return response

    async def _tell_quality(self, context):
        self.calls.append("quality")
        if not self.quality:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inference output '{QUALITY}'")
        response = service_pb2.ModelInferResponse(model_name="embedder")
        response.outputs.add(name=QUALITY, datatype="FP64", shape=(1, 1))
        response.raw_output_contents.append(self.quality)
        return response

    async def _count(self, change: int) -> None:
        self.inside += change
        async with self._changed:
            self._changed.notify_all()

    async def ServerLive(self, request, context):
        self.calls.append("ServerLive")
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        self.calls.append("ServerReady")
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):
        self.calls.append("ModelReady")
        return service_pb2.ModelReadyResponse(ready=self.loaded and request.name == "embedding")

    async def ServerMetadata(self, request, context):
        self.calls.append("ServerMetadata")
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0", extensions=["statistics"])

    async def ModelMetadata(self, request, context):
        self.calls.append("ModelMetadata")
        await self._known(request.name, context)
        response = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], platform="ensemble")
        response.inputs.add(name="text", datatype="BYTES", shape=(-1, 1))
        response.outputs.add(name="embedding", datatype="BYTES", shape=(-1, 1))
        return response

    async def ModelConfig(self, request, context):
        self.calls.append("ModelConfig")
        await self._known(request.name, context)
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=1024)
        config.parameters["dimensions"].string_value = str(self.dimensions)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request, context):
        self.calls.append("ModelStatistics")
        return self.statistics

    async def RepositoryIndex(self, request, context):
        self.calls.append("RepositoryIndex")
        response = service_pb2.RepositoryIndexResponse()
        response.models.add(name="embedding", version="1", state="READY")
        return response

    async def RepositoryModelLoad(self, request, context):
        self.calls.append("RepositoryModelLoad")
        if self.repository_failure is not None:
            await context.abort(*self.repository_failure)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request, context):
        self.calls.append("RepositoryModelUnload")
        if self.repository_failure is not None:
            await context.abort(*self.repository_failure)
        return service_pb2.RepositoryModelUnloadResponse()

    async def TraceSetting(self, request, context):
        self.calls.append("TraceSetting")
        return service_pb2.TraceSettingResponse()

    async def LogSettings(self, request, context):
        self.calls.append("LogSettings")
        return service_pb2.LogSettingsResponse()

    async def _known(self, name: str, context) -> None:
        if name != "embedding":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


class Front:
    """A port whose bytes are forwarded to another port, and back."""

    def __init__(self) -> None:
        self.port = 0
        self.behind = 0
        self.delay = 0.0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self, behind: int) -> None:
        self.behind = behind
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        for writer in self._writers:
            connection = writer.get_extra_info("socket")
            with suppress(OSError):  # it is closed already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    async def crash(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        await asyncio.sleep(self.delay)
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.behind)
        self._writers |= {writer, back_writer}
        await asyncio.gather(_pump(reader, back_writer), _pump(back_reader, writer))
        self._writers -= {writer, back_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
