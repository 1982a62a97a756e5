"""Infinity (infinity-emb of PyPI), in a virtual environment of its own."""

import sys
from collections.abc import Sequence

from tritonembed_perf.compare.environments import own_python, versions
from tritonembed_perf.compare.peer import Bench, Config, ServerPeer
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.run.wire import WireProtocol

REQUIREMENTS = ("infinity-emb[server,torch]==0.0.78",)
MODULES = ("infinity_emb", "fastapi", "uvicorn", "orjson", "posthog", "prometheus_fastapi_instrumentator", "torch")
START = "from infinity_emb.cli import cli; cli()"
"""Its command `infinity_emb`, also where only its package was unpacked."""

SERVED_NAME = "bench"

# Its flags for these have other names with a newer typer; and it would call home.
SETTINGS = {"INFINITY_MODEL_WARMUP": "false", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}


class Infinity(ServerPeer):
    """Its torch engine: the same precision as the others, and no conversion of the model."""

    name = "infinity-emb"

    def __init__(self) -> None:
        self.note = "torch engine, base64"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""
        self._python = own_python(bench, self.name, REQUIREMENTS, MODULES)
        self.note = f"{versions(self._python, ['infinity-emb', 'sentence-transformers', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says."""
        sizes = (128, 512) if bench.on_gpu else (32, 64, 128)
        return [Config(("--batch-size", str(size))) for size in sizes]

    def settings(self, bench: Bench) -> dict[str, str]:  # noqa: ARG002
        """As ServerPeer says."""
        return SETTINGS

    def command(self, bench: Bench, port: int) -> list[str]:
        """As ServerPeer says."""
        program = [self._python, "-c", START, "v2", "--model-id", str(bench.model), "--engine", "torch"]
        program += ["--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", "--dtype", bench.dtype]
        program += ["--device", bench.device, "--served-model-name", SERVED_NAME]
        return [*program, "--log-level", "warning"]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        """As ServerPeer says."""
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME)
