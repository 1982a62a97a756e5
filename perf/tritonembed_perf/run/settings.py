"""What a run is asked to do, checked before anything is started."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tritonembed_perf.failures import UsageError
from tritonembed_perf.run.presets import PRESETS

PROTOCOLS = ("kserve", "openai", "arctic")
DISTRIBUTIONS = ("fixed", "uniform", "normal")
ENCODINGS = ("base64", "float", "bytes")
REFERENCES = ("server", "model")
DEFAULT_SERVERS = {"kserve": "localhost:50050", "arctic": "localhost:50050", "openai": "http://localhost:8080"}
"""Where our manager listens."""

BATCH_SIZES = (1, 16, 64)
REQUESTS = 1024
CONCURRENCY = 16
PROMPT_LENGTH = 50
MAX_CLIENT_PROCESSES = 8
CORES_PER_CLIENT_PROCESS = 4


@dataclass(frozen=True)
class Settings:
    """One run: a row of results for each of `batch_sizes`.

    requests, duration (seconds): exactly one is set. concurrency, rate (requests a second): exactly one is set.
    """

    server: str
    model: str | None
    tokenizer: str | None
    protocol: str
    encoding: str
    batch_sizes: tuple[int, ...]
    requests: int | None
    duration: float | None
    concurrency: int | None
    rate: float | None
    prompt_length: int
    distribution: str
    dataset: Path | None
    processes: int
    warm_up: float
    timeout: float
    reference: str
    min_cosine: float
    seed: int
    preset: str | None


def make_settings(given: dict[str, Any]) -> Settings:
    """Settings of the options that were given; what is None was not.

    Raises UsageError for options that contradict each other or make no sense.
    """
    _refuse_contradictions(given)
    chosen = dict(given)
    if given.get("preset"):
        preset = PRESETS[given["preset"]]
        chosen |= {
            name: getattr(preset, name)
            for name in ("requests", "prompt_length", "concurrency", "batch_sizes", "distribution")
        }
    rate, duration = chosen.get("rate"), chosen.get("duration")
    concurrency = None if rate is not None else _or(chosen.get("concurrency"), CONCURRENCY)
    processes = chosen.get("processes")
    if processes is None:
        cores = len(os.sched_getaffinity(0))
        processes = max(1, min(cores // CORES_PER_CLIENT_PROCESS, MAX_CLIENT_PROCESSES, concurrency or cores))
    elif concurrency is not None and processes > concurrency:
        raise UsageError(f"--processes {processes} is more than --concurrency {concurrency}")
    server = chosen.get("server")
    return Settings(
        server=DEFAULT_SERVERS[chosen["protocol"]] if server is None else server,
        model=chosen.get("model"),
        tokenizer=chosen.get("tokenizer"),
        protocol=chosen["protocol"],
        encoding=chosen.get("encoding") or "base64",
        batch_sizes=chosen.get("batch_sizes") or BATCH_SIZES,
        requests=None if duration is not None else _or(chosen.get("requests"), REQUESTS),
        duration=duration,
        concurrency=concurrency,
        rate=rate,
        prompt_length=_or(chosen.get("prompt_length"), PROMPT_LENGTH),
        distribution=chosen.get("distribution") or "fixed",
        dataset=chosen.get("dataset"),
        processes=processes,
        warm_up=chosen["warm_up"],
        timeout=chosen["timeout"],
        reference=chosen["reference"],
        min_cosine=chosen["min_cosine"],
        seed=chosen["seed"],
        preset=chosen.get("preset"),
    )


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """`1,16,64`; each size once. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch-sizes is numbers from 1 on, with commas between them, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _refuse_contradictions(given: dict[str, Any]) -> None:
    shape = ("prompt_length", "distribution")
    load = ("batch_sizes", "requests", "concurrency", "duration", "rate")
    pairs = [("rate", ("concurrency",)), ("duration", ("requests",)), ("dataset", shape)]
    pairs.append(("preset", (*shape, *load, "dataset")))
    for one, others in pairs:
        for other in others:
            if given.get(one) is not None and given.get(other) is not None:
                raise UsageError(f"{_option(one)} and {_option(other)} contradict each other")
    server = given.get("server")
    if server is not None and not _is_address(server, given["protocol"]):
        what = "host:port or a URL" if given["protocol"] == "openai" else "host:port"
        raise UsageError(f"--server is {what} for --protocol {given['protocol']}, not {server!r}")
    if given.get("encoding") is not None and given["protocol"] != "openai":
        raise UsageError("--encoding goes with --protocol openai")
    if given.get("preset") is not None and given["preset"] not in PRESETS:
        raise UsageError(f"--preset is one of {', '.join(PRESETS)}")


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


def _or(value: Any, default: int) -> int:
    return default if value is None else int(value)
