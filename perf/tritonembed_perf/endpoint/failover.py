"""SIGKILL of one of two Triton servers under load: how long until what it held is answered, and until it is back.

    python -m tritonembed_perf.endpoint.failover MODEL [--kills 20] [--clients 32] [--json FILE] [-- serve options]

`tritonembed-manager serve` launches both. Of the requests that are in flight at the moment of the kill about half are
at the server that dies; the other one answers them. Measured is the time from SIGKILL to the last answer of all that
were in flight, which no moved request exceeds. A request that fails ends the run.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from typing import Any

import grpc
import numpy as np
import psutil  # type: ignore[import-untyped]
from tokenizers import Tokenizer

from tritonembed_perf.exact_length import exact_length_texts
from tritonembed_perf.load import CONNECTION_OPTIONS, METHOD, encode_request
from tritonembed_perf.manager import RunningManager, running_manager
from tritonembed_perf.output import output_file
from tritonembed_perf.passed_on import parse_with_rest
from tritonembed_perf.run.environment import describe_environment, machine_line

SERVERS = 2
TOKENS, TEXTS = 50, 256
SETTLED_S = 2.0
"""Of load with both servers before each kill."""

PATIENCE_S = 180.0


class Clients:
    """A closed loop; knows since when each request is on its way."""

    def __init__(self, target: str, payloads: list[bytes], count: int) -> None:
        self._target = target
        self._payloads = payloads
        self._count = count
        self.on_their_way: dict[int, float] = {}
        self.finished: dict[int, float] = {}
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Send until `stop`."""
        self._channels = [grpc.aio.insecure_channel(self._target, options=CONNECTION_OPTIONS) for _ in range(4)]
        self._tasks = [asyncio.create_task(self._loop(index)) for index in range(self._count)]

    async def stop(self) -> None:
        """Wait for the last answers. Raises the first error that a client saw."""
        self._ended = True
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(channel.close(None) for channel in self._channels))

    async def _loop(self, index: int) -> None:
        call = self._channels[index % len(self._channels)].unary_unary(METHOD, None, None)
        number = index
        while not self._ended:
            self.on_their_way[number] = time.monotonic()
            await call(self._payloads[number % len(self._payloads)], timeout=60)
            self.finished[number] = time.monotonic()
            del self.on_their_way[number]
            number += self._count


def main() -> None:
    """Print the distribution of both times; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json", type=output_file)
    options, serve = parse_with_rest(parser)
    environment = describe_environment(["python", "-m", "tritonembed_perf.endpoint.failover", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
    tokenizer = Tokenizer.from_file(f"{options.model}/tokenizer.json")
    payloads = [encode_request([text]) for text in exact_length_texts(tokenizer, TOKENS, TEXTS, seed=1)]
    arguments = ["--servers", str(SERVERS), "--num-replicas", str(SERVERS), "--max-restarts", str(options.kills)]
    with running_manager(options.model, [*arguments, *serve]) as manager:
        answered, back = asyncio.run(kill_often(manager, Clients(manager.target, payloads, options.clients), options))
    for name, seconds in (("all answered", answered), ("both servers back", back)):
        p50, p99 = np.percentile(seconds, (50, 99))
        print(f"{name:>18}: p50 {p50 * 1e3:,.0f} ms, p99 {p99 * 1e3:,.0f} ms, most {max(seconds) * 1e3:,.0f} ms")
    if options.json:
        figures = {"kills": options.kills, "clients": options.clients, "answered_s": answered, "back_s": back}
        options.json.write_text(json.dumps({**environment, **figures}, indent=1) + "\n")


async def kill_often(
    manager: RunningManager, clients: Clients, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the last answer of what was in flight, and to full strength."""
    answered, back = [], []
    await clients.start()
    for number in range(options.kills):
        await asyncio.sleep(SETTLED_S)
        victim = tritonservers(manager.pid)[number % SERVERS]
        before = restarts(manager)
        killed = time.monotonic()
        held = set(clients.on_their_way)
        os.kill(victim, signal.SIGKILL)
        while held & clients.on_their_way.keys():
            await asyncio.sleep(0.001)
        answered.append(max(clients.finished[request] for request in held) - killed)
        while not (restarts(manager) > before and all_ready(manager)):
            if time.monotonic() - killed > PATIENCE_S:
                raise SystemExit("the server that was killed did not come back")
            await asyncio.sleep(0.05)
        back.append(time.monotonic() - killed)
        clients.finished.clear()
        print(f"kill {number + 1}: {answered[-1] * 1e3:.0f} ms, back after {back[-1]:.1f} s", flush=True)
    await clients.stop()
    return answered, back


def tritonservers(pid: int) -> list[int]:
    """Those that the manager launched, in the order of their ports."""
    found = [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "tritonserver"]
    ordered = sorted(found, key=lambda child: next(w for w in child.cmdline() if w.startswith("--grpc-port=")))
    return [child.pid for child in ordered]


def restarts(manager: RunningManager) -> int:
    """Of all servers."""
    return sum(server["restarts"] for server in _status(manager)["servers"])


def all_ready(manager: RunningManager) -> bool:
    """Whether every server serves."""
    return all(server["state"] == "ready" for server in _status(manager)["servers"])


def _status(manager: RunningManager) -> dict[str, Any]:
    with urllib.request.urlopen(f"{manager.url}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


if __name__ == "__main__":
    main()
