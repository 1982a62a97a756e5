"""A small KServe server in this process for `tritonembed-bench run`. Its responses can be made wrong.

Vectors depend on the text alone and tokens are those of the model's own tokenizer, so the responses pass every check
until `spoil` changes them. `on_request` is called for every request with its number (from 1 on) and its sentences.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tests.fakes.triton import infer_response, texts
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc


def unit_vector(text: bytes, dimensions: int) -> np.ndarray:
    """The vector of a text, of norm 1."""
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(dimensions).astype("<f4")
    return values / np.linalg.norm(values)


class FakeKServe(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that listens on `target` until `close`."""

    def __init__(self, model: Path, dimensions: int, credentials: grpc.ServerCredentials | None = None) -> None:
        self.spoil: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda vectors: vectors
        self.on_request: Callable[[int, int, Any], None] = lambda _number, _sentences, _context: None
        self.models = ["embedding", "embedder", "tokenizer"]
        self.sizes: list[int] = []
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._dimensions = dimensions
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            self.target = f"grpcs://127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    def ModelInfer(self, request, context):
        sentences = texts(request)
        with self._lock:
            self.sizes.append(len(sentences))
            number = len(self.sizes)
        self.on_request(number, len(sentences), context)
        vectors = [unit_vector(text, self._dimensions) for text in sentences]
        tokens = [len(self._tokenizer.encode(text.decode()).ids) for text in sentences]
        return infer_response(self.spoil(vectors), tokens)

    def ServerMetadata(self, _request, _context):
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def RepositoryIndex(self, _request, _context):
        response = service_pb2.RepositoryIndexResponse()
        for name in self.models:
            response.models.add(name=name, version="1", state="READY")
        return response

    def ModelConfig(self, request, _context):
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=128)
        config.input.add(name="text" if request.name in ("embedding", "tokenizer") else "token_ids")
        return service_pb2.ModelConfigResponse(config=config)

    def ModelStatistics(self, _request, _context):
        return service_pb2.ModelStatisticsResponse()
