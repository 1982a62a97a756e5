"""CPU time of a worker, and of Envoy, per single sentence, with a server behind them that computes nothing.

    python -m tritonembed_perf.scripts.hop_cpu [--load 50x1@32] [--rounds 9] [--before FOLDER] [--json out.json]

The server answers every request with the same bytes, so that the worker is the limit. `floor` is the simplest proxy:
grpc.aio's server hands each message to grpc.aio's channel. `server` is grpc.aio's server alone. `envoy` is the
manager's Envoy with one thread, if there is one, and `envoy's floor` an Envoy that only routes; the CPU time is that of
Envoy's process. p50 is the client's; with `@1`, its difference to the p50 of `server` is the hop's latency. `--before`
is another checkout of this project, whose worker is measured in turn with this one's. Requests per CPU second of the
process, with its gRPC threads, are nearly the same on a busy machine as on a quiet one; medians count.
"""

import asyncio
import json
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import grpc
import grpc.aio
import numpy as np
import psutil  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2
from typer import Option

from tritonembed_manager.router.control.envoy.settings import find_envoy
from tritonembed_manager.tune.loadgen.clients import run_closed_loop
from tritonembed_manager.tune.loadgen.load import CONNECTION_OPTIONS, METHOD, encode_request
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.options import run_script
from tritonembed_perf.server import free_ports, running_manager
from tritonembed_protocol.framing import frame, unframe

WARM_UP_S = 0.5
DIMENSIONS = 384
CHANNELS = 2
"""Connections of the floor to the server: as many as the manager's."""
WORKER, ENVOY = "tritonembed_manager.router.worker", "envoy"
_STARTS_S = 30.0
PARTS = ("client", "engine", "manager", "perf")
"""Folders of a checkout that hold packages."""

Handler = Any
"""The handler of a method of grpc.aio's server, for encoded messages."""


def answer(sentences: int) -> bytes:
    """An encoded ModelInferResponse of the ensemble."""
    response = service_pb2.ModelInferResponse(model_name="embedding", model_version="1")
    response.outputs.add(name="embedding", datatype="BYTES", shape=(sentences, 1))
    response.outputs.add(name="num_tokens", datatype="INT32", shape=(sentences, 1))
    vectors = np.full((sentences, DIMENSIONS), DIMENSIONS**-0.5, "<f4")
    response.raw_output_contents.append(frame([row.tobytes() for row in vectors]))
    response.raw_output_contents.append(np.full(sentences, 50, "<i4").tobytes())
    return bytes(response.SerializeToString())


def empty_server() -> dict[str, Handler]:
    """A Triton server that computes nothing."""
    answers: dict[int, bytes] = {}

    async def infer(message: bytes, context: Any) -> bytes:
        # Nearly all requests have one row, and the size of the message shows it.
        if len(message) not in answers:
            request = service_pb2.ModelInferRequest.FromString(message)
            if [output.name for output in request.outputs] not in ([], ["embedding"]):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output")
            answers[len(message)] = answer(len(unframe(request.raw_input_contents[0])))
        return answers[len(message)]

    return {METHOD: grpc.unary_unary_rpc_method_handler(infer)}


def floor_of(target: str) -> dict[str, Handler]:
    """A proxy in front of `target` that does nothing else."""
    channels = [grpc.aio.insecure_channel(target, CONNECTION_OPTIONS) for _ in range(CHANNELS)]
    calls = [channel.unary_unary(METHOD, None, None) for channel in channels]
    turn = 0

    async def infer(_messages: Any, context: Any) -> bytes:
        nonlocal turn
        turn = (turn + 1) % CHANNELS
        message = await context.read()
        found: bytes = await calls[turn](message, timeout=context.time_remaining())
        return found

    return {METHOD: grpc.stream_unary_rpc_method_handler(infer)}


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, details: Any) -> Handler:
        return self._handlers.get(details.method)


def _serve(pipe: Connection, target: str | None, with_uvloop: bool) -> None:
    async def run() -> None:
        server = grpc.aio.server(options=CONNECTION_OPTIONS)
        handlers = empty_server() if target is None else floor_of(target)
        server.add_generic_rpc_handlers((_Methods(handlers),))
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    if with_uvloop:
        import uvloop

        uvloop.run(run())
    else:
        asyncio.run(run())


@contextmanager
def served(target: str | None = None, *, with_uvloop: bool = False) -> Iterator[tuple[str, int]]:
    """A process with the empty server, or with the floor in front of `target`: its address and its pid."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, target, with_uvloop), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}", process.pid or 0
    finally:
        process.kill()
        process.join()


@contextmanager
def envoys_floor(target: str) -> Iterator[tuple[str, int]]:
    """An Envoy in front of `target` that does nothing but route: its address and its pid."""
    [port] = free_ports(1)
    types = "type.googleapis.com/envoy.extensions"
    options = "upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": f"{types}.{options}", "explicit_http_config": {"http2_protocol_options": {}}}
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "floor",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "floor",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "floor", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}}],
    }
    filters = [{"name": "http", "typed_config": manager}]
    host = {"endpoint": {"address": _address(target)}}
    configuration = {
        "static_resources": {
            "listeners": [
                {"name": "floor", "address": _address(f"127.0.0.1:{port}"), "filter_chains": [{"filters": filters}]}
            ],
            "clusters": [
                {
                    "name": "floor",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {f"envoy.extensions.{options}": http2},
                    "load_assignment": {"cluster_name": "floor", "endpoints": [{"lb_endpoints": [host]}]},
                }
            ],
        }
    }
    command = [str(find_envoy(None)), "--config-yaml", json.dumps(configuration), "--concurrency", "1"]
    process = subprocess.Popen([*command, "--disable-hot-restart", "--log-level", "off"])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(_STARTS_S)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def _address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextmanager
def packages_of(checkout: Path | None) -> Iterator[None]:
    """Processes that start in this block run another checkout of this project; None: this one."""
    path = os.environ.get("PYTHONPATH")
    if checkout is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join(str(checkout.resolve() / part) for part in PARTS)
    try:
        yield
    finally:
        if path is not None:
            os.environ["PYTHONPATH"] = path
        elif checkout is not None:
            del os.environ["PYTHONPATH"]


@contextmanager
def worker_of(checkout: Path | None, target: str, *more: str, process: str = WORKER) -> Iterator[tuple[str, int]]:
    """A manager with one worker in front of `target`: its address, and the pid of its worker, or of another process.

    more: options. process: its name, or a word of its command line.
    """
    options = [
        "--server",
        target,
        "--workers",
        "1",
        "--max-in-flight",
        "4096",
        "--max-in-flight-per-server",
        "4096",
        *more,
    ]
    with packages_of(checkout), running_manager("hop", options) as manager:
        family = psutil.Process(manager.process.pid).children(recursive=True)
        [found] = [one.pid for one in family if one.name() == process or process in one.cmdline()]
        yield manager.target, found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(address: str, pid: int, load: LoadShape, payloads: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Requests per CPU second of the process, and the client's p50 in milliseconds. Raises BenchError."""
    before = cpu_seconds(pid)
    outcome = run_closed_loop(address, payloads, load.at_once, 1, seconds, WARM_UP_S)
    if outcome.samples.errors:
        raise BenchError(f"requests failed: {outcome.samples.errors}")
    # The warm-up's requests are in the CPU time, too.
    rate = outcome.requests_per_second * (seconds + WARM_UP_S) / (cpu_seconds(pid) - before)
    return rate, outcome.latency_ms(50)


def hop_cpu(
    load: Annotated[str, Option(help="TOKENSxSENTENCES@CONCURRENCY.")] = "50x1@32",
    seconds: Annotated[float, Option(min=0.1, help="Seconds of each round.")] = 3,
    rounds: Annotated[int, Option(min=1, help="Rounds; medians count.")] = 9,
    before: Annotated[Path | None, Option(help="Another checkout, to compare with.")] = None,
) -> dict[str, Any]:
    """Requests per CPU second of the manager's worker, of its Envoy, and of their floors."""
    [shape] = parse_loads(load)
    payloads = [encode_request(["word " * (shape.tokens - 2)] * shape.sentences)]
    found: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        target, server = stack.enter_context(served())
        ways = {"worker": stack.enter_context(worker_of(None, target))}
        if before is not None:
            ways["before"] = stack.enter_context(worker_of(before, target))
        ways["floor"] = stack.enter_context(served(target))
        if find_spec("uvloop") is not None:
            ways["floor, uvloop"] = stack.enter_context(served(target, with_uvloop=True))
        if find_spec("envoy") is not None:
            options = ("--data-plane", "envoy", "--envoy-threads", "1")
            ways["envoy"] = stack.enter_context(worker_of(None, target, *options, process=ENVOY))
            ways["envoy's floor"] = stack.enter_context(envoys_floor(target))
        ways["server"] = (target, server)
        for number in range(rounds):
            # In turn, so that a busy machine slows all.
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                found.setdefault(name, []).append(measure(*ways[name], shape, payloads, seconds))
    rows = []
    for name in ways:
        rates, latencies = np.array(found[name]).T
        ratio = float(np.median(rates / np.array(found["worker"])[:, 0]))
        rows.append(
            {
                "way": name,
                "load": load,
                "requests_per_cpu_second": float(np.median(rates)),
                "ratio_to_worker": ratio,
                "p50_ms": float(np.median(latencies)),
            }
        )
        spread = f"{rates.min():,.0f} to {rates.max():,.0f}"
        figures = f"{np.median(rates):,.0f} requests per CPU second ({spread}), {ratio:.3f} of worker"
        print(f"{name}: {figures}, p50 {np.median(latencies):.2f} ms", flush=True)
    return {"rows": rows}


if __name__ == "__main__":
    run_script("hop_cpu", __doc__, hop_cpu)
