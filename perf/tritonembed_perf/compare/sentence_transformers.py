"""sentence-transformers: in a program of its own, and behind the HTTP server that one writes in an hour."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tritonembed_perf.compare.environments import PROGRAMS, own_python, versions
from tritonembed_perf.compare.peer import Bench, Config, Endpoint, InProcess, ServerPeer
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.run.wire import WireProtocol

ENVIRONMENT = "sentence-transformers"
REQUIREMENTS = ("sentence-transformers==6.2.0", "fastapi==0.136.3", "uvicorn==0.54.0")
LIBRARY = ("torch", "sentence_transformers")


def _common(bench: Bench) -> list[str]:
    return ["--model", str(bench.model), "--dtype", bench.dtype, "--device", bench.device]


class SentenceTransformersInProcess:
    """`encode` on everything that the other systems have in flight at one time."""

    name = "sentence-transformers"

    def __init__(self) -> None:
        self.note = "in process: no server, no network; all requests in flight are one call of encode"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""
        self._python = own_python(bench, ENVIRONMENT, REQUIREMENTS, LIBRARY)
        self.note = f"{versions(self._python, ['sentence-transformers', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says."""
        sizes = (128, 512) if bench.on_gpu else (32, 64, 256)
        return [Config(("--batch-size", str(size))) for size in sizes]

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """As Peer says. The program runs during a measurement only."""
        yield InProcess((self._python, str(PROGRAMS / "in_process.py"), *_common(bench), *config.flags))


class SentenceTransformersServer(ServerPeer):
    """FastAPI and uvicorn around `encode`."""

    name = "sentence-transformers-http"

    def __init__(self) -> None:
        self.note = "a minimal FastAPI server, base64"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""
        self._python = own_python(bench, ENVIRONMENT, REQUIREMENTS, (*LIBRARY, "fastapi", "uvicorn"))
        self.note = f"{versions(self._python, ['sentence-transformers', 'torch', 'fastapi'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says. --parallel: calls of encode at one time."""
        if bench.on_gpu:
            return [Config(("--parallel", "1")), Config(("--parallel", "4"))]
        return [
            Config(("--parallel", "1")),
            Config(("--parallel", str(bench.cores))),
            Config(("--parallel", str(bench.cores), "--threads", "1")),
        ]

    def command(self, bench: Bench, port: int) -> list[str]:
        """As ServerPeer says."""
        return [self._python, str(PROGRAMS / "fastapi_server.py"), "--port", str(port), *_common(bench)]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        """As ServerPeer says."""
        return OpenAI(f"http://127.0.0.1:{port}", "bench")
