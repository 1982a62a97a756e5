"""Arctic Inference's gRPC API: its own embedding server, and the manager, which speaks it too."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from tritonembed_manager.serve.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_perf.run.grpc_transport import GrpcTransport, open_channels, reach
from tritonembed_perf.run.wire import (
    Answer,
    RequestFailedError,
    Served,
    UnknownModelError,
    UnreachableError,
    WrongAnswerError,
)

SERVICE = "/arctic_inference.InferenceService/"


@dataclass(frozen=True)
class Arctic:
    """model: its name at the server, which refuses any other; None where it is still to be asked for."""

    server: str
    model: str | None = None
    name: str = "arctic"

    def encode(self, texts: Sequence[str]) -> bytes:
        """As WireProtocol says."""
        request = arctic.EncodeRequest(n_prompts=len(texts), prompts=texts, model_name=self.model or "")
        payload: bytes = request.SerializeToString()
        return payload

    def decode(self, answer: bytes, sentences: int) -> Answer:
        """As WireProtocol says."""
        message = arctic.EncodeResponse.FromString(answer)
        if message.error:
            raise RequestFailedError("EncodeResponse.error", message.error)
        rows = message.embedding_bytes_fp32
        if len(rows) != sentences or len({len(row) for row in rows}) != 1:
            raise WrongAnswerError(f"{len(rows)} vectors, perhaps of different lengths, for {sentences} sentences")
        return Answer(np.frombuffer(b"".join(rows), "<f4").reshape(sentences, -1))

    def open(self, connections: int, timeout: float) -> GrpcTransport:
        """As WireProtocol says."""
        return GrpcTransport(self.server, SERVICE + "Encode", connections, timeout)

    async def ask(self, timeout: float) -> Served:
        """As WireProtocol says."""
        [channel] = open_channels(self.server, 1)
        try:
            await reach(channel, timeout)
            call = channel.unary_unary(
                SERVICE + "GetReplicaInfo",
                arctic.ReplicaInfoRequest.SerializeToString,
                arctic.ReplicaInfoResponse.FromString,
            )
            info = await call(arctic.ReplicaInfoRequest(), timeout=timeout)
            models = tuple(sorted({replica.model_name for replica in info.replica_infos}))
            model = self.model or next(iter(models), "")
            if model not in models:
                raise UnknownModelError(models)
            return Served(model, models, f"{info.n_healthy_replicas} of {info.n_replicas} replicas healthy")
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{error.code().name}: {error.details()}") from None
        finally:
            await channel.close(None)
