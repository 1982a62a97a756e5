"""A closed loop of requests against a Triton server: several client processes, requests encoded beforehand.

Each process keeps its share of the requests in flight over its own connections and sends bytes that were serialized
before the clock started, so the client costs as little as gRPC for Python allows.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CONNECTION_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Several processes, and several connections in each: otherwise gRPC shares one.
    ("grpc.use_local_subchannel_pool", 1),
]
REQUESTS_PER_CONNECTION = 32


@dataclass(frozen=True)
class Load:
    """What is sent: `concurrency` requests in flight in all, from `processes`, for `seconds` after `warm_up`."""

    target: str
    payloads: Sequence[bytes]
    concurrency: int
    processes: int
    seconds: float
    warm_up: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came back. latencies: seconds, sorted. cpu_seconds: of the client processes, during the measured time."""

    requests: int
    seconds: float
    errors: dict[str, int]
    latencies: np.ndarray  # type: ignore[type-arg]
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in seconds."""
        return float(np.percentile(self.latencies, percent)) if len(self.latencies) else float("nan")


def encode_request(texts: Sequence[str], model: str = "embedding") -> bytes:
    """A serialized ModelInferRequest for these texts."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    del tensor
    data = [text.encode() for text in texts]
    request.raw_input_contents.append(b"".join(len(item).to_bytes(4, "little") + item for item in data))
    serialized: bytes = request.SerializeToString()
    return serialized


def run_load(load: Load) -> Outcome:
    """Run the closed loop; every process starts its clock when all are connected."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    barrier = context.Barrier(load.processes)
    shares = [
        load.concurrency // load.processes + (i < load.concurrency % load.processes) for i in range(load.processes)
    ]
    # Daemons, because a server that is gone keeps them waiting for a connection when the benchmark is told to end.
    workers = [
        context.Process(target=_work, args=(load, share, i, barrier, queue), daemon=True)
        for i, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    parts = [queue.get(timeout=load.seconds + load.warm_up + 120) for _ in workers]
    for worker in workers:
        worker.join()
    errors: dict[str, int] = {}
    for part in parts:
        for code, count in part[1].items():
            errors[code] = errors.get(code, 0) + count
    latencies = np.sort(np.concatenate([part[0] for part in parts]))
    return Outcome(len(latencies), load.seconds, errors, latencies, sum(part[2] for part in parts))


def _work(load: Load, share: int, number: int, barrier, queue) -> None:  # type: ignore[no-untyped-def]
    queue.put(asyncio.run(_loop(load, share, number, barrier)))


async def _loop(load: Load, share: int, number: int, barrier) -> tuple[np.ndarray, dict[str, int], float]:  # type: ignore
    channels = [
        grpc.aio.insecure_channel(load.target, options=CONNECTION_OPTIONS)
        for _ in range(max(1, -(-share // REQUESTS_PER_CONNECTION)))
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    barrier.wait()
    begin = time.perf_counter() + load.warm_up
    end = begin + load.seconds
    latencies: list[float] = []
    errors: dict[str, int] = {}
    cpu = [0.0]

    async def one(index: int) -> None:
        call = channels[index % len(channels)].unary_unary(METHOD, None, None)
        turn = number * 7919 + index
        while (started := time.perf_counter()) < end:
            turn += share
            try:
                await call(load.payloads[turn % len(load.payloads)])
            except grpc.aio.AioRpcError as error:
                errors[error.code().name] = errors.get(error.code().name, 0) + 1
                continue
            finished = time.perf_counter()
            # Only what ends inside the measured time counts: at the end some requests are still on their way.
            if begin <= finished <= end:
                latencies.append(finished - started)

    async def measure_cpu() -> None:
        await asyncio.sleep(load.warm_up)
        before = time.process_time()
        await asyncio.sleep(load.seconds)
        cpu[0] = time.process_time() - before

    await asyncio.gather(measure_cpu(), *(one(index) for index in range(share)))
    await asyncio.gather(*(channel.close(None) for channel in channels))
    return np.array(latencies), errors, cpu[0]
