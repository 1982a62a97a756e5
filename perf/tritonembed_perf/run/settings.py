"""The options of `tritonembed-bench run`, each declared once, and what they come to."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from typer import Option

from tritonembed_manager.tune.loadgen.load import Load
from tritonembed_perf.failures import UsageError

DEFAULT_SERVERS = {"kserve": "localhost:50050", "arctic": "localhost:50050", "openai": "http://localhost:8080"}
"""The addresses of our manager by default."""

DAY_S = 86_400
MAX_CLIENT_PROCESSES = 8
CORES_PER_CLIENT_PROCESS = 4
CONTRADICTIONS = (
    ("rate", "concurrency"),
    ("duration", "requests"),
    ("dataset", "prompt_length"),
    ("dataset", "distribution"),
)
MODEL_HELP = (
    "What the server serves. kserve: the folder or the hub's name of the model, whose tokenizer counts the tokens, or "
    "a Triton model's name (then --tokenizer too). openai, arctic: the name at the server; by default the one it has."
)
REFERENCE_HELP = "Right vectors: the server's for each text alone, or transformers' (float32)."


@dataclass(frozen=True)
class Settings:
    """One run: a row of results per batch size."""

    server: Annotated[
        str | None, Option(help="host:port, or a URL.", show_default="localhost:50050; openai: :8080")
    ] = None
    model: Annotated[str | None, Option(help=MODEL_HELP)] = None
    tokenizer: Annotated[str | None, Option(help="Folder or hub's name of the model, if --model is neither.")] = None
    protocol: Annotated[Literal["kserve", "openai", "arctic"], Option()] = "kserve"
    encoding: Annotated[Literal["base64", "float", "bytes"], Option(help="openai only; bytes is vLLM's.")] = "base64"
    batch_sizes: Annotated[str, Option(help="Sentences per request; a row each.")] = "1,16,64"
    requests: Annotated[int, Option(min=1, help="Measured for each batch size.")] = 1024
    duration: Annotated[
        float | None, Option(min=0.1, max=DAY_S, help="Seconds for each batch size instead of --requests.")
    ] = None
    concurrency: Annotated[int, Option(min=1, help="Requests in flight, closed loop.")] = 16
    rate: Annotated[
        float | None, Option(min=0.001, max=1e6, help="Requests per second instead, open loop, Poisson.")
    ] = None
    prompt_length: Annotated[int, Option(min=1, help="Tokens, special ones included.")] = 50
    distribution: Annotated[Literal["fixed", "uniform", "normal"], Option(help="Of lengths up to --prompt-length.")] = (
        "fixed"
    )
    dataset: Annotated[Path | None, Option(help="Texts of a .txt, .jsonl, .csv or .parquet file instead.")] = None
    processes: Annotated[
        int | None, Option(min=1, max=256, help="Of the client.", show_default="a quarter of the cores")
    ] = None
    warm_up: Annotated[float, Option(min=0, max=DAY_S, help="Seconds before the clock starts.")] = 1.0
    timeout: Annotated[float, Option(min=0.001, max=DAY_S, help="Seconds for one request.")] = 60.0
    reference: Annotated[Literal["server", "model"], Option(help=REFERENCE_HELP)] = "server"
    min_cosine: Annotated[float, Option(min=0, max=1, help="To the right vector.")] = 0.999
    seed: Annotated[int, Option(help="Of texts and arrivals.")] = 0
    json_path: Annotated[Path | None, Option(None, "--json", help="Write the results here.")] = None

    @property
    def address(self) -> str:
        """Of the server."""
        return DEFAULT_SERVERS[self.protocol] if self.server is None else self.server

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes, each once. Raises UsageError."""
        parts = [part.strip() for part in self.batch_sizes.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(f"--batch-sizes is numbers from 1 on, with commas between them, not {self.batch_sizes!r}")
        return tuple(dict.fromkeys(int(part) for part in parts))

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
        """A quarter of the cores, and at least one, if nothing else was asked for."""
        if self.processes is not None:
            return self.processes
        cores = len(os.sched_getaffinity(0))
        at_once = cores if self.rate is not None else self.concurrency
        return max(1, min(cores // CORES_PER_CLIENT_PROCESS, MAX_CLIENT_PROCESSES, at_once))

    def check(self) -> None:
        """Raises UsageError for options that contradict each other or make no sense."""
        for one, other in CONTRADICTIONS:
            if getattr(self, one) is not None and getattr(self, other) != getattr(Settings, other):
                raise UsageError(f"{_option(one)} and {_option(other)} contradict each other")
        if not _is_address(self.address, self.protocol):
            what = "host:port or a URL" if self.protocol == "openai" else "host:port"
            raise UsageError(f"--server is {what} for --protocol {self.protocol}, not {self.address!r}")
        if self.encoding != Settings.encoding and self.protocol != "openai":
            raise UsageError("--encoding goes with --protocol openai")
        if self.rate is None and self.processes is not None and self.processes > self.concurrency:
            raise UsageError(f"--processes {self.processes} is more than --concurrency {self.concurrency}")
        assert self.sizes

    def as_json(self) -> dict[str, Any]:
        """Every option, also those that were left to their defaults; of files their names without folders."""
        values = asdict(self)
        del values["json_path"]
        values |= {"server": self.address, "batch_sizes": self.sizes, "processes": self.client_processes}
        values |= {"concurrency": self.load.concurrency, "requests": self.load.requests}
        for name in ("model", "tokenizer", "dataset"):
            if values[name] is not None:
                values[name] = Path(values[name]).name if Path(values[name]).exists() else str(values[name])
        return values


def _is_address(server: str, protocol: str) -> bool:
    if protocol == "openai" and server.startswith(("http://", "https://")):
        try:
            parts = urlsplit(server)
            return bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, or over 65535
            return False
    host, _, port = server.rpartition(":")
    return bool(host) and "/" not in server and port.isdecimal() and 0 < int(port) <= 65535


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
