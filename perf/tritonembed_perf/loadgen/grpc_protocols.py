"""KServe v2 over gRPC (Triton and the manager) and Arctic Inference's API (its own server, and the manager)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.tune.loadgen.kserve import ENSEMBLE, GrpcSender, encode_request, open_channels
from tritonembed_manager.tune.loadgen.load import RequestFailedError
from tritonembed_perf.loadgen.answers import Answer
from tritonembed_perf.loadgen.protocol import Served, WireProtocol, WrongAnswerError, choose_model, unreachable
from tritonembed_protocol.framing import FramingError, unframe_vectors
from tritonembed_protocol.types import OUTPUT_TYPES

ARCTIC_SERVICE = "/arctic_inference.InferenceService/"


@dataclass(frozen=True)
class KServe:
    """A WireProtocol. model: the Triton model that takes texts."""

    server: str
    model: str = ENSEMBLE
    name: str = "kserve"

    def sender(self) -> GrpcSender:
        return GrpcSender(self.server)

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
            server = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=timeout)
            index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=timeout)
            models = sorted({model.name for model in index.models})
            choose_model(self, models)
            request = service_pb2.ModelConfigRequest(name=self.model)
            config = (await stub.ModelConfig(request, timeout=timeout)).config
            if [tensor.name for tensor in config.input] != ["text"]:
                choose_model(self, [name for name in models if name == ENSEMBLE != self.model])
            return Served(self.model, f"{server.name} {server.version}", config.max_batch_size)


@dataclass(frozen=True)
class Arctic:
    """A WireProtocol. model: its name at the server, which refuses any other; None: `describe` finds it."""

    server: str
    model: str | None = None
    name: str = "arctic"

    def sender(self) -> GrpcSender:
        return GrpcSender(self.server, ARCTIC_SERVICE + "Encode")

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
            info = await call(arctic.ReplicaInfoRequest(), timeout=timeout)
            model = choose_model(self, sorted({replica.model_name for replica in info.replica_infos}))
            return Served(model, f"{info.n_healthy_replicas} of {info.n_replicas} replicas healthy")


@asynccontextmanager
async def _connected(protocol: WireProtocol, timeout: float) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that answers. Raises UsageError, also for a call that fails within the block."""
    [channel] = open_channels(protocol.server, 1)
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout)
        yield channel
    except (asyncio.TimeoutError, grpc.aio.UsageError):
        raise unreachable(protocol) from None
    except grpc.aio.AioRpcError as error:
        raise unreachable(protocol, f"{error.code().name}: {error.details()}") from None
    finally:
        await channel.close(None)
