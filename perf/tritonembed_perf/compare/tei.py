"""Hugging Face's Text Embeddings Inference, where its program is on PATH."""

import shutil
from collections.abc import Sequence

from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, ServerPeer
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.run.wire import WireProtocol

PROGRAM = "text-embeddings-router"


class TextEmbeddingsInference(ServerPeer):
    """Its HTTP server."""

    name = "tei"
    note = "base64 over HTTP"

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""
        if shutil.which(PROGRAM) is None:
            raise CannotRunError(f"{PROGRAM} is not on PATH")
        if bench.dtype not in ("float32", "float16"):
            raise CannotRunError(f"it has no {bench.dtype}: --dtype float16 compares it")

    def configs(self, bench: Bench) -> Sequence[Config]:  # noqa: ARG002
        """As Peer says."""
        return [Config(("--max-batch-tokens", str(tokens))) for tokens in (16_384, 65_536)]

    def command(self, bench: Bench, port: int) -> list[str]:
        """As ServerPeer says."""
        program = [PROGRAM, "--model-id", str(bench.model), "--hostname", "127.0.0.1", "--port", str(port)]
        program += ["--dtype", bench.dtype, "--max-client-batch-size", "1024", "--max-concurrent-requests", "4096"]
        return [*program, "--auto-truncate"]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        """As ServerPeer says."""
        return OpenAI(f"http://127.0.0.1:{port}", "bench")
