"""Ways to get vectors from a server: KServe v2 and Arctic Inference's API over gRPC, OpenAI's over HTTP.

Requests are bytes made beforehand, answers bytes until they are checked.
"""

import asyncio
import json
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.tune.loadgen.load import (
    ENSEMBLE,
    GrpcSender,
    RequestFailedError,
    Sender,
    encode_request,
    key_metadata,
    open_channels,
)
from tritonembed_perf.failures import UsageError
from tritonembed_protocol.framing import FramingError, unframe_vectors
from tritonembed_protocol.tls import CLOSES, tls_reason
from tritonembed_protocol.types import OUTPUT_TYPES


@dataclass(frozen=True)
class Answer:
    """vectors: (sentences, dimensions). tokens: as the server counted them, if the protocol has that number exactly."""

    vectors: npt.NDArray[np.float32]
    tokens: int | None = None


@dataclass(frozen=True)
class Served:
    """A server's own description. model: the name that requests use."""

    model: str
    description: str
    max_batch_size: int | None = None


class WrongAnswerError(Exception):
    """An answer that can't be read as vectors."""


class WireProtocol(Protocol):
    """One way to get vectors from a server; small enough to be pickled to the client processes."""

    @property
    def name(self) -> str:
        """The value of --protocol."""

    @property
    def server(self) -> str:
        """The address."""

    @property
    def tls(self) -> ClientTls:
        """Certificates for grpcs:// and https://."""

    @property
    def api_key(self) -> str | None:
        """A tenant's key, for a manager that requires keys."""

    @property
    def model(self) -> str | None:
        """The model's name at the server; None for the server's own."""

    def sender(self) -> Sender:
        """How payloads reach the server."""

    def encode(self, texts: Sequence[str]) -> bytes:
        """A request's payload."""

    def decode(self, answer: bytes, sentences: int) -> Answer:
        """Raises WrongAnswerError; RequestFailedError for an error that travels as a success."""

    async def describe(self, timeout: float) -> Served:
        """The server's description. Raises UsageError if it does not answer or lacks the model."""


def unreachable(protocol: WireProtocol, reason: str = "") -> UsageError:
    """The error for a server that does not answer."""
    return UsageError(f"no server answers at {protocol.server} over {protocol.name}" + (reason and f" ({reason})"))


def choose_model(protocol: WireProtocol, models: Sequence[str]) -> str:
    """The protocol's model, else the first of the server's. Raises UsageError if the server lacks it."""
    model = protocol.model or next(iter(models), "")
    if model not in models:
        has = ", ".join(models) or "none that takes texts"
        raise UsageError(f"the server has no model {protocol.model!r}; it has: {has}")
    return model


ARCTIC_SERVICE = "/arctic_inference.InferenceService/"


@dataclass(frozen=True)
class KServeProtocol:
    """A WireProtocol. model: the Triton model that takes texts."""

    server: str
    model: str = ENSEMBLE
    name: str = "kserve"
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def sender(self) -> GrpcSender:
        return GrpcSender(self.server, tls=self.tls, api_key=self.api_key)

    def encode(self, texts: Sequence[str]) -> bytes:
        return encode_request(texts, self.model)

    def decode(self, answer: bytes, sentences: int) -> Answer:
        message = service_pb2.ModelInferResponse.FromString(answer)
        names = (output.name for output in message.outputs)
        contents = dict(zip(names, message.raw_output_contents, strict=False))
        if "embedding" not in contents:
            raise WrongAnswerError("the answer has no output `embedding`")
        try:
            vectors = unframe_vectors(contents["embedding"], sentences, OUTPUT_TYPES["float"].dtype)
        except FramingError as error:
            raise WrongAnswerError(str(error)) from None
        counted = contents.get("num_tokens")
        return Answer(vectors, None if counted is None else int(np.frombuffer(counted, "<i4").sum()))

    async def describe(self, timeout: float) -> Served:
        async with _connected(self, timeout) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            more: Any = {"timeout": timeout, "metadata": key_metadata(self.api_key)}
            server = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), **more)
            index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), **more)
            models = sorted({model.name for model in index.models})
            choose_model(self, models)
            request = service_pb2.ModelConfigRequest(name=self.model)
            config = (await stub.ModelConfig(request, **more)).config
            if [tensor.name for tensor in config.input] != ["text"]:
                choose_model(self, [name for name in models if name == ENSEMBLE != self.model])
            return Served(self.model, f"{server.name} {server.version}", config.max_batch_size)


@dataclass(frozen=True)
class Arctic:
    """A WireProtocol. model: its name at the server, which refuses any other; None: `describe` finds it."""

    server: str
    model: str | None = None
    name: str = "arctic"
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def sender(self) -> GrpcSender:
        return GrpcSender(self.server, ARCTIC_SERVICE + "Encode", self.tls, self.api_key)

    def encode(self, texts: Sequence[str]) -> bytes:
        request = arctic.EncodeRequest(n_prompts=len(texts), prompts=texts, model_name=self.model or "")
        payload: bytes = request.SerializeToString()
        return payload

    def decode(self, answer: bytes, sentences: int) -> Answer:
        message = arctic.EncodeResponse.FromString(answer)
        if message.error:
            raise RequestFailedError("EncodeResponse.error", message.error)
        rows = message.embedding_bytes_fp32
        if len(rows) != sentences or len({len(row) for row in rows}) != 1:
            raise WrongAnswerError(f"{len(rows)} vectors, perhaps of different lengths, for {sentences} sentences")
        return Answer(np.frombuffer(b"".join(rows), "<f4").reshape(sentences, -1))

    async def describe(self, timeout: float) -> Served:
        async with _connected(self, timeout) as channel:
            call = channel.unary_unary(
                ARCTIC_SERVICE + "GetReplicaInfo",
                arctic.ReplicaInfoRequest.SerializeToString,
                arctic.ReplicaInfoResponse.FromString,
            )
            info = await call(arctic.ReplicaInfoRequest(), timeout=timeout, metadata=key_metadata(self.api_key))
            model = choose_model(self, sorted({replica.model_name for replica in info.replica_infos}))
            return Served(model, f"{info.n_healthy_replicas} of {info.n_replicas} replicas healthy")


@asynccontextmanager
async def _connected(protocol: WireProtocol, timeout: float) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that answers. Raises UsageError, also for a call that fails within the block."""
    [channel] = open_channels(protocol.server, 1, protocol.tls)
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout)
        yield channel
    except (asyncio.TimeoutError, grpc.aio.UsageError):
        raise unreachable(protocol, await _reason(channel)) from None
    except grpc.aio.AioRpcError as error:
        raise unreachable(protocol, f"{error.code().name}: {error.details()}") from None
    finally:
        await channel.close(None)


async def _reason(channel: grpc.aio.Channel) -> str:
    """The reason why a channel is not ready, if it is about TLS. Only a call has it."""
    try:
        await channel.unary_unary("/inference.GRPCInferenceService/ServerLive", None, None)(b"", timeout=1)
    except grpc.aio.AioRpcError as error:
        return tls_reason(error.details()) or ""
    return ""


HTTP_OK = 200
HTTP_NOT_FOUND = 404
MESSAGE_LENGTH = 200
MOST_CONNECTIONS = 512


@dataclass(frozen=True)
class OpenAIProtocol:
    """A WireProtocol. server: http://host:port, perhaps with a path other than /v1.

    encoding: `base64` and `float` are OpenAI's; `bytes` is vLLM's `bytes_only`: little-endian float32 and nothing else.
    """

    server: str
    model: str | None = None
    encoding: str = "base64"
    name: str = "openai"
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def encode(self, texts: Sequence[str]) -> bytes:
        body = {"input": list(texts), "encoding_format": "bytes_only" if self.encoding == "bytes" else self.encoding}
        if self.model:
            body["model"] = self.model
        return json.dumps(body).encode()

    def decode(self, answer: bytes, sentences: int) -> Answer:
        try:
            if self.encoding == "bytes":
                return Answer(np.frombuffer(answer, "<f4").reshape(sentences, -1))
            items = json.loads(answer)["data"]
            if [item["index"] for item in items] != list(range(sentences)):
                raise WrongAnswerError(f"{len(items)} vectors for {sentences} sentences, or out of order")
            rows = [item["embedding"] for item in items]
            if self.encoding == "base64":
                joined = b"".join(map(b64decode, rows))
                return Answer(np.frombuffer(joined, "<f4").reshape(sentences, -1))
            return Answer(np.array(rows, np.float32))
        except (ValueError, KeyError, TypeError, IndexError):
            raise WrongAnswerError(f"the answer can't be read as {sentences} vectors in {self.encoding}") from None

    def sender(self) -> "HttpSender":
        return HttpSender(base_url(self.server) + "/embeddings", self.tls, self.api_key)

    async def describe(self, timeout: float) -> Served:
        """A server that does not list its models is taken to have the model that was named."""
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit, headers=dict(key_metadata(self.api_key))) as session,
                session.get(base_url(self.server) + "/models", ssl=_context(self.server, self.tls)) as answer,
            ):
                body = await answer.read()
                status, software = answer.status, answer.headers.get("Server", "HTTP")
            if status == HTTP_NOT_FOUND and self.model:
                return Served(self.model, software)
            models = [str(item["id"]) for item in json.loads(body)["data"]]
        except aiohttp.ClientResponseError:
            raise unreachable(self, "it does not speak HTTP") from None
        except aiohttp.ServerDisconnectedError:
            raise unreachable(self, CLOSES) from None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise unreachable(self, tls_reason(str(error)) or str(error) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError):
            raise unreachable(self, "it does not answer as an OpenAI server: no list of models") from None
        return Served(choose_model(self, models), software)


@dataclass(frozen=True)
class HttpSender:
    """A Sender: POSTs payloads to the URL."""

    url: str
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def connections(self, concurrency: int | None) -> int:
        return min(concurrency or MOST_CONNECTIONS, MOST_CONNECTIONS)

    def open(self, connections: int, timeout: float) -> "HttpTransport":
        return HttpTransport(self.url, connections, timeout, self.tls, self.api_key)


class HttpTransport:
    """Keep-alive connections, as many as there are requests at one time and at most `connections`."""

    def __init__(self, url: str, connections: int, timeout: float, tls: ClientTls, api_key: str | None = None) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=_context(url, tls)),
            timeout=aiohttp.ClientTimeout(total=timeout),
            headers={"Content-Type": "application/json", **dict(key_metadata(api_key))},
        )

    async def send(self, payload: bytes, number: int) -> bytes:  # noqa: ARG002 - the pool spreads requests by itself
        try:
            async with self._session.post(self._url, data=payload) as answer:
                body = await answer.read()
        except asyncio.TimeoutError:
            raise RequestFailedError("timeout") from None
        except aiohttp.ClientError as error:
            raise RequestFailedError(type(error).__name__, str(error)) from None
        if answer.status != HTTP_OK:
            raise RequestFailedError(f"HTTP {answer.status}", body[:MESSAGE_LENGTH].decode(errors="replace"))
        return body

    async def close(self) -> None:
        await self._session.close()


def _context(url: str, tls: ClientTls) -> ssl.SSLContext | bool:
    # Plain text needs no reading of the system's authorities.
    return tls.context() if url.startswith("https://") else True


def base_url(server: str) -> str:
    """`host:port`, `http://host:port` and `http://host:port/v1` are the same; another path is kept."""
    url = server if "://" in server else f"http://{server}"
    path = urlsplit(url).path.rstrip("/")
    return url.rstrip("/") if path else url.rstrip("/") + "/v1"
