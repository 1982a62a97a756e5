"""The options of `tritonembed-bench`, each declared once, and what they come to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from typer import Option

from tritonembed_manager.tune.loadgen.load import Load
from tritonembed_perf.failures import UsageError
from tritonembed_protocol.tls import GRPCS, without_scheme

if TYPE_CHECKING:
    from tritonembed_manager.server.client_tls import ClientTls

DEFAULT_SERVERS = {"kserve": "localhost:50050", "arctic": "localhost:50050", "openai": "http://localhost:8080"}
"""The addresses of our manager by default."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
"""Arguments of a Typer app."""

PASSES_ON = {"allow_extra_args": True}
"""Settings of a command that starts servers: what follows `--` goes to the servers."""

DAY_S = 86_400
MAX_CLIENT_PROCESSES = 8
CONTRADICTIONS = (
    ("rate", "concurrency"),
    ("duration", "requests"),
    ("dataset", "prompt_length"),
    ("dataset", "distribution"),
)
METRICS_PORT = 8002
"""Triton's own default."""

WINDOWS = 3
"""Windows of a measurement by perf_analyzer."""

MODEL_HELP = (
    "What the server serves. kserve: the folder or the hub's name of the model, whose tokenizer counts the tokens, or "
    "a Triton model's name (then --tokenizer too). openai, arctic: the name at the server; by default the one it has."
)
REFERENCE_HELP = "Right vectors: the server's for each text alone, or transformers' (float32)."
METRICS_HELP = f"host:port of --server's metrics, of a manager its HTTP port; by default port {METRICS_PORT} there."
LOADS_HELP = "TOKENSxSENTENCES@CONCURRENCY, with commas between them."

ServedModel = Annotated[str, Option(help="Folder or hub's name of the model that is served.")]
Json = Annotated[Path | None, Option(None, "--json", help="Write the results here.")]
ApiKey = Annotated[
    str | None,
    Option(envvar="TRITONEMBED_API_KEY", help="Key of a tenant, for a manager that requires one.", show_default=False),
]


@dataclass(frozen=True)
class RunSettings:
    """`run`: a row of results per batch size."""

    server: Annotated[
        str | None,
        Option(
            help="host:port, or a URL. grpcs:// and https:// are over TLS.",
            show_default="localhost:50050; openai: :8080",
        ),
    ] = None
    model: Annotated[str | None, Option(help=MODEL_HELP)] = None
    tokenizer: Annotated[str | None, Option(help="Folder or hub's name of the model, if --model is neither.")] = None
    protocol: Annotated[Literal["kserve", "openai", "arctic"], Option()] = "kserve"
    encoding: Annotated[Literal["base64", "float", "bytes"], Option(help="openai's; bytes is vLLM's.")] = "base64"
    batch_sizes: Annotated[str, Option(help="Sentences per request; a row each.")] = "1,16,64"
    requests: Annotated[int, Option(min=1, help="Requests per batch size.")] = 1024
    duration: Annotated[
        float | None, Option(min=0.1, max=DAY_S, help="Seconds for each batch size instead of --requests.")
    ] = None
    concurrency: Annotated[int, Option(min=1, help="Requests in flight, closed loop.")] = 16
    rate: Annotated[
        float | None, Option(min=0.001, max=1e6, help="Requests per second instead, open loop, Poisson.")
    ] = None
    prompt_length: Annotated[int, Option(min=1, help="Tokens, special ones included.")] = 50
    distribution: Annotated[
        Literal["fixed", "uniform", "normal"], Option(help="How lengths vary, up to --prompt-length.")
    ] = "fixed"
    dataset: Annotated[Path | None, Option(help="Texts of a .txt, .jsonl, .csv or .parquet file instead.")] = None
    processes: Annotated[
        int | None, Option(min=1, max=256, help="Client processes.", show_default="for this machine")
    ] = None
    warm_up: Annotated[float, Option(min=0, max=DAY_S, help="Seconds before the clock starts.")] = 1.0
    timeout: Annotated[float, Option(min=0.001, max=DAY_S, help="Seconds for one request.")] = 60.0
    reference: Annotated[Literal["server", "model"], Option(help=REFERENCE_HELP)] = "server"
    min_cosine: Annotated[float, Option(min=0, max=1, help="Least cosine to the right vector.")] = 0.999
    seed: Annotated[int, Option(help="Seed of texts and arrivals.")] = 0
    tls_ca: Annotated[
        Path | None, Option(help="Authorities to trust (PEM).", show_default="those of gRPC or the system")
    ] = None
    tls_cert: Annotated[Path | None, Option(help="Certificate of the client (PEM), if the server requires one.")] = None
    tls_key: Annotated[Path | None, Option(help="The key of --tls-cert (PEM).")] = None
    api_key: ApiKey = field(default=None, repr=False)
    json_path: Json = None

    @property
    def tls(self) -> "ClientTls":
        """The --tls-… files. Raises UsageError."""
        # It imports gRPC.
        from tritonembed_manager.server.client_tls import ClientTls

        try:
            return ClientTls.read((self.tls_ca, self.tls_cert, self.tls_key), ("--tls-ca", "--tls-cert", "--tls-key"))
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def address(self) -> str:
        """The server's address."""
        return DEFAULT_SERVERS[self.protocol] if self.server is None else self.server

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes, each once. Raises UsageError."""
        return tuple(dict.fromkeys(numbers("--batch-sizes", self.batch_sizes)))

    @property
    def load(self) -> Load:
        """A closed loop, or an open loop with --rate; a number of requests, or --duration."""
        return Load(
            self.concurrency if self.rate is None else None,
            self.rate,
            self.requests if self.duration is None else None,
            self.duration,
            self.warm_up,
            self.timeout,
            self.seed,
        )

    @property
    def client_processes(self) -> int:
        """--processes, or what suits this machine."""
        return client_processes(self.processes, None if self.rate is not None else self.concurrency)

    def check(self) -> None:
        """Raises UsageError for options that contradict each other or make no sense."""
        for one, other in CONTRADICTIONS:
            if getattr(self, one) is not None and getattr(self, other) != getattr(RunSettings, other):
                raise UsageError(f"{_option(one)} and {_option(other)} contradict each other")
        if not _is_address(self.address, self.protocol):
            what = "host:port or a URL" if self.protocol == "openai" else f"host:port or {GRPCS}host:port"
            raise UsageError(f"--server is {what} for --protocol {self.protocol}, not {self.address!r}")
        if self.encoding != RunSettings.encoding and self.protocol != "openai":
            raise UsageError("--encoding goes with --protocol openai")
        if self.rate is None and self.processes is not None and self.processes > self.concurrency:
            raise UsageError(f"--processes {self.processes} is more than --concurrency {self.concurrency}")
        assert self.sizes


@dataclass(frozen=True)
class CompareSettings:
    """`compare`: a table per load, a row per system."""

    peers: Annotated[str, Option(help="Names with commas between them; --list shows them.")] = "all"
    model: Annotated[
        Path | None, Option(help="Folder of the model; by default a random bert-6x384, on a GPU bert-base.")
    ] = None
    loads: Annotated[str | None, Option(help=LOADS_HELP, show_default="for this machine")] = None
    rates: Annotated[
        str, Option(help="Offered rates of 50x1, too, open loop: requests/s, with commas.", show_default=False)
    ] = ""
    rounds: Annotated[
        int, Option(min=1, help="Rounds over all peers: with all settings, then with the best; medians count.")
    ] = 3
    seconds: Annotated[float, Option(min=0.5, help="Seconds per measurement.")] = 6.0
    warm_up: Annotated[float, Option(min=0, help="Seconds before each measurement.")] = 2.0
    processes: Annotated[int | None, Option(min=1, help="Client processes.", show_default="for this machine")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Option(help="Precision of all peers.", show_default="float32; GPU: bfloat16"),
    ] = None
    device: Annotated[Literal["cpu", "cuda"] | None, Option(show_default="what is there")] = None
    python: Annotated[
        list[str] | None, Option(help="PEER=PATH, repeatable: the Python with that peer's packages, instead of this.")
    ] = None
    settings: Annotated[
        list[str] | None, Option(help="PEER=OPTIONS, repeatable: these options instead of a sweep over its own.")
    ] = None
    work_dir: Annotated[Path | None, Option(help="Logs, and what was fetched.", show_default="user's cache")] = None
    out: Annotated[Path | None, Option(help="Folder for JSON, Markdown and charts.")] = None
    merge: Annotated[
        list[Path] | None, Option(help="A compare.json, repeatable: one report of them all; nothing is measured.")
    ] = None
    list_peers: Annotated[bool, Option(None, "--list", help="Show the systems that can be compared.")] = False


@dataclass(frozen=True)
class OverheadSettings:
    """`overhead`: a column per load."""

    model: ServedModel
    server: Annotated[str | None, Option(help="host:port of a running Triton; by default one is started.")] = None
    metrics: Annotated[str | None, Option(help=METRICS_HELP)] = None
    loads: Annotated[str, Option(help=LOADS_HELP)] = "50x1@1,50x1@16,50x64@1,50x64@4"
    requests: Annotated[int, Option(min=1, help="Requests per load.")] = 200
    api_key: ApiKey = field(default=None, repr=False)
    plot: Annotated[Path | None, Option(help="Write the stacked bars here, with .png and .svg added.")] = None
    json_path: Json = None

    def check(self, arguments: Sequence[str]) -> None:
        """arguments: of the server that is started. Raises UsageError for options that contradict each other."""
        if self.server is not None and arguments:
            raise UsageError(f"{arguments[0]} is for the server that is started without --server")
        if self.server is None and self.metrics is not None:
            raise UsageError("--metrics is for a running server (--server)")


@dataclass(frozen=True)
class AnalyzerSettings:
    """`perf-analyzer`: a row per load and target."""

    model: ServedModel
    loads: Annotated[str, Option(help=LOADS_HELP)] = "50x1@1,50x1@16,50x16@16,50x64@4"
    seconds: Annotated[float, Option(min=0.1, max=600, help=f"Seconds per window, of which there are {WINDOWS}.")] = 2.0
    server: Annotated[str | None, Option(help="host:port of a running Triton.")] = None
    manager: Annotated[str | None, Option(help="host:port of a running manager.")] = None
    program: Annotated[
        Path | None,
        Option(None, "--perf-analyzer", help="The program; by default on PATH, else from a tritonclient wheel."),
    ] = None
    api_key: ApiKey = field(default=None, repr=False)
    json_path: Json = None

    @property
    def targets(self) -> dict[str, str | None]:
        """The address of each target; None if it has to be started: both without an address."""
        every = {"triton": self.server, "manager": self.manager}
        return {name: address for name, address in every.items() if address} or every

    def key_for(self, target: str) -> str | None:
        """The tenant's key, which a Triton itself never gets."""
        return self.api_key if target == "manager" else None


def client_processes(wanted: int | None, at_once: int | None) -> int:
    """Few on few cores, because the server needs them: six for sixteen, as four can't send 1024 single sentences.

    at_once: requests in flight; None in an open loop.
    """
    cores = len(os.sched_getaffinity(0))
    most = wanted or max(1, min(cores * 3 // 8, MAX_CLIENT_PROCESSES))
    return most if at_once is None else min(most, at_once)


def numbers(option: str, text: str) -> list[int]:
    """Reads whole numbers with commas between them. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} is numbers from 1 on, with commas between them, not {text!r}")
    return [int(part) for part in parts]


def _is_address(server: str, protocol: str) -> bool:
    is_url = protocol == "openai" and server.startswith(("http://", "https://"))
    server = server if protocol == "openai" else without_scheme(server)[0]
    try:
        parts = urlsplit(server if is_url else f"//{server}")
        if not parts.hostname or parts.port == 0:
            return False
        return is_url or (parts.port is not None and not parts.path)
    except ValueError:  # a port that is no number, or over 65535
        return False


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
