"""KServe v2 over gRPC: Triton itself, and the manager before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed import ServerError
from tritonembed._wire import unframe_vectors, vector_dtype
from tritonembed_perf.load import METHOD, encode_request
from tritonembed_perf.run.grpc_transport import GrpcTransport, open_channels, reach
from tritonembed_perf.run.wire import Answer, Served, UnknownModelError, UnreachableError, WrongAnswerError

ENSEMBLE = "embedding"


@dataclass(frozen=True)
class KServe:
    """model: the Triton model that takes texts."""

    server: str
    model: str = ENSEMBLE
    name: str = "kserve"

    def encode(self, texts: Sequence[str]) -> bytes:
        """As WireProtocol says."""
        return encode_request(texts, self.model)

    def decode(self, answer: bytes, sentences: int) -> Answer:
        """As WireProtocol says."""
        message = service_pb2.ModelInferResponse.FromString(answer)
        contents = dict(
            zip((output.name for output in message.outputs), message.raw_output_contents, strict=False),
        )
        if "embedding" not in contents:
            raise WrongAnswerError("the answer has no output `embedding`")
        try:
            vectors = unframe_vectors(contents["embedding"], sentences, vector_dtype("float"))
        except ServerError as error:
            raise WrongAnswerError(str(error)) from None
        counted = contents.get("num_tokens")
        return Answer(vectors, None if counted is None else int(np.frombuffer(counted, "<i4").sum()))

    def open(self, connections: int, timeout: float) -> GrpcTransport:
        """As WireProtocol says."""
        return GrpcTransport(self.server, METHOD, connections, timeout)

    async def ask(self, timeout: float) -> Served:
        """As WireProtocol says."""
        [channel] = open_channels(self.server, 1)
        try:
            await reach(channel, timeout)
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            server = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=timeout)
            index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=timeout)
            models = tuple(sorted({model.name for model in index.models}))
            if self.model not in models:
                raise UnknownModelError(models)
            request = service_pb2.ModelConfigRequest(name=self.model)
            config = (await stub.ModelConfig(request, timeout=timeout)).config
            if [tensor.name for tensor in config.input] != ["text"]:
                raise UnknownModelError([name for name in models if name == ENSEMBLE])
            return Served(self.model, models, f"{server.name} {server.version}", config.max_batch_size)
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{error.code().name}: {error.details()}") from None
        finally:
            await channel.close(None)
