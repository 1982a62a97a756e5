"""The table of systems that can be compared, in the order in which they run."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tritonembed_engine.stub.child_python import module_command
from tritonembed_perf.compare.peer import DEFAULTS, ArcticInference, Environment, Peer
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.protocols import Arctic, KServeProtocol, OpenAIProtocol

PROGRAMS = str(Path(__file__).parent / "programs")

# sentence-transformers-http and vllm-serve-tuned share an environment with their namesakes. vLLM is this project's own:
# the same vLLM is the fairest.
SENTENCE_TRANSFORMERS = Environment(
    "sentence-transformers",
    ("sentence_transformers", "torch", "fastapi", "uvicorn"),
    "sentence-transformers fastapi uvicorn",
)
VLLM = Environment("vllm-serve", ("vllm", "torch"), "vllm")
# Infinity needs BetterTransformer, which optimum 2 has no longer and which refuses newer transformers. Its command line
# can't be read with a newer click.
INFINITY = Environment(
    "infinity-emb",
    ("infinity_emb", "sentence_transformers", "torch", "optimum.bettertransformer"),
    "'infinity-emb[server,torch]==0.0.78' 'optimum<2' 'transformers<4.49' 'click<8.2'",
)
ARCTIC = Environment("arctic-inference", ("vllm", "grpc_tools"), "vllm grpcio-tools")
ENVIRONMENTS = tuple(one.name for one in (SENTENCE_TRANSFORMERS, VLLM, INFINITY, ARCTIC))
"""What --python can name."""

SERVED_NAME = "bench"
LISTEN = ("--host", "127.0.0.1", "--port", "{port}")
OURS = ("--model", "{model}", "--device", "{device}", "--dtype", "{dtype}", "--host", "127.0.0.1")
MANAGER = (*module_command("tritonembed_manager", "serve", *OURS), "--start-port", "{port3}")
SENTENCE_TRANSFORMERS_MAIN = (
    "{python}", f"{PROGRAMS}/sentence_transformers_main.py",
    "--model", "{model}", "--dtype", "{dtype}", "--device", "{device}",
)  # fmt: skip
# A load repeats its texts. vLLM's cache of a decoder's prefixes would answer them without computing them.
VLLM_SERVE = (
    "{python}", f"{PROGRAMS}/vllm_main.py", "serve", "{model}", *LISTEN, "--dtype", "{dtype}",
    "--runner", "pooling", "--served-model-name", SERVED_NAME, "--no-enable-prefix-caching",
)  # fmt: skip

# Without these, vLLM leaves a core of a CPU to its API server, and takes memory for tokens that are never generated.
LITTLE_CACHE = "VLLM_CPU_KVCACHE_SPACE=1"
ALL_CORES = f"{LITTLE_CACHE} VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS="
QUIET = "--disable-uvicorn-access-log"


def all_peers() -> dict[str, Peer]:
    """The peers, by name."""
    peers = [
        Peer(
            "tritonembed",
            (*module_command("tritonembed_manager", "replica", *OURS), "--port", "{port}", "--http-port", "{port2}",
             "--metrics-port", "{port3}"),
            cpu=tuple(f"--replicas {n} --tokenizer-instances {m}" for n, m in ((1, 1), (1, 2), (2, 1))),
            gpu=("--replicas 3 --tokenizer-instances 8", "--replicas 6 --tokenizer-instances 12"),
            protocol=lambda address, _: KServeProtocol(address),
        ),
        Peer(
            "tritonembed-manager",
            (*MANAGER, "--port", "{port}", "--http-port", "{port2}"),
            cpu=("--num-replicas 1 --workers 1", "--num-replicas 1 --workers 2"),
            gpu=("--num-replicas 3 --workers 4",),
            protocol=lambda address, _: KServeProtocol(address),
            note="through the manager",
        ),
        Peer(
            "tritonembed-openai",
            (*MANAGER, "--port", "{port2}", "--http-port", "{port}"),
            cpu=("--num-replicas 1 --workers 1", "--num-replicas 1 --workers 2"),
            gpu=("--num-replicas 3 --workers 4",),
            protocol=lambda address, model: OpenAIProtocol(address, str(model)),
            note="through the manager, base64 over HTTP",
        ),
        Peer(
            "sentence-transformers",
            SENTENCE_TRANSFORMERS_MAIN,
            cpu=("--batch-size 32", "--batch-size 64", "--batch-size 256"),
            gpu=("--batch-size 128", "--batch-size 512"),
            protocol=None,
            note="in process: no server, no network; all requests in flight are one call of encode",
            environment=SENTENCE_TRANSFORMERS,
        ),
        Peer(
            "sentence-transformers-http",
            (*SENTENCE_TRANSFORMERS_MAIN, "--port", "{port}"),
            cpu=("--parallel 1", "--parallel {cores}", "--parallel {cores} --threads 1"),
            gpu=("--parallel 1", "--parallel 4"),
            protocol=lambda address, _: OpenAIProtocol(address, SERVED_NAME),
            note="a minimal FastAPI server, base64; --parallel: calls of encode at one time",
            environment=SENTENCE_TRANSFORMERS,
        ),
        Peer(
            "vllm-serve",
            VLLM_SERVE,
            cpu=(LITTLE_CACHE,),
            gpu=(DEFAULTS,),
            protocol=lambda address, _: OpenAIProtocol(address, SERVED_NAME, "float"),
            note="answers as float, its API's default",
            environment=VLLM,
        ),
        Peer(
            "vllm-serve-tuned",
            VLLM_SERVE,
            cpu=(
                f"{LITTLE_CACHE} --api-server-count 1 --max-num-seqs 256 {QUIET}",
                f"{LITTLE_CACHE} --api-server-count 2 --max-num-seqs 256 {QUIET}",
                f"{ALL_CORES}{{cores}} --enforce-eager {QUIET}",
            ),
            # Other sizes of its scheduler change nothing: its API servers are the limit.
            gpu=tuple(f"--api-server-count {count} --max-num-seqs 1024 {QUIET}" for count in (4, 8)),
            protocol=lambda address, _: OpenAIProtocol(address, SERVED_NAME, "bytes"),
            note="answers as bytes, which costs it the least",
            environment=VLLM,
        ),
        Peer(
            "infinity-emb",
            (
                "{python}", "-c", "from infinity_emb.cli import cli; cli()", "v2", "--model-id", "{model}",
                "--engine", "torch", *LISTEN, "--url-prefix", "/v1", "--dtype", "{dtype}", "--device", "{device}",
                "--served-model-name", SERVED_NAME, "--log-level", "warning",
            ),
            cpu=("--batch-size 32", "--batch-size 64", "--batch-size 128"),
            gpu=("--batch-size 128", "--batch-size 512"),
            protocol=lambda address, _: OpenAIProtocol(address, SERVED_NAME),
            # Its other engines convert the model or change its precision.
            note="torch engine, base64",
            environment=INFINITY,
            # Its flags for these have other names with a newer typer; and it would call home.
            variables={"INFINITY_MODEL_WARMUP": "false", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
        ),
        ArcticInference(
            "arctic-inference",
            (
                "{python}", f"{PROGRAMS}/arctic_main.py", "{source}", "replica_manager", "--model", "{model}",
                *LISTEN, "--dtype", "{dtype}", "--startup-timeout", "600", "--runner", "pooling",
            ),
            cpu=(
                f"{ALL_CORES}{{cores}} --num-replicas 1 --enforce-eager",
                f"{ALL_CORES}{{half_cores}} --num-replicas 2 --enforce-eager",
            ),
            gpu=(
                "--num-replicas 6 --gpu-memory-utilization 0.150",
                "--num-replicas 12 --gpu-memory-utilization 0.075",
            ),
            protocol=lambda address, model: Arctic(address, str(model)),
            note=f"{ArcticInference.version}, by way of a shim: it is written for vLLM 0.9.2",
            environment=ARCTIC,
        ),
    ]  # fmt: skip
    return {peer.name: peer for peer in peers}


def choose_peers(names: str) -> list[Peer]:
    """The peers of `all`, or of names with commas between them. Raises UsageError."""
    known = all_peers()
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--peers: {name!r} is none of {', '.join(known)}")
    return [known[name] for name in known if name in wanted]


def with_settings(peers: Iterable[Peer], values: Iterable[str]) -> list[Peer]:
    """The peers, with the options of PEER=OPTIONS instead of a sweep. Raises UsageError."""
    chosen = {peer.name: peer for peer in peers}
    for value in values:
        name, equals, options = value.partition("=")
        if not equals or name not in chosen:
            raise UsageError(f"--settings is PEER=OPTIONS, and PEER one of {', '.join(chosen)}")
        chosen[name] = replace(chosen[name], cpu=(options,), gpu=(options,))
    return list(chosen.values())
