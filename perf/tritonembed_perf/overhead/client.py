"""Requests whose every step is timed: made, sent and read one by one, in this process."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from tritonclient.grpc import service_pb2

from tritonembed._wire import frame, unframe_vectors, vector_dtype
from tritonembed_perf.failures import BenchError
from tritonembed_perf.load import METHOD
from tritonembed_perf.overhead.stages import ENSEMBLE, ClientTimes
from tritonembed_perf.run.grpc_transport import GrpcTransport
from tritonembed_perf.run.wire import RequestFailedError

CONNECTIONS = 4


def send_timed(
    server: str, requests: Sequence[Sequence[str]], concurrency: int, prefix: str, timeout: float
) -> dict[str, ClientTimes]:
    """Send them all, `concurrency` in flight. The times by the request's id, which begins with `prefix`.

    Raises BenchError when one fails.
    """
    return asyncio.run(_send_all(server, requests, concurrency, prefix, timeout))


async def _send_all(
    server: str, requests: Sequence[Sequence[str]], concurrency: int, prefix: str, timeout: float
) -> dict[str, ClientTimes]:
    transport = GrpcTransport(server, METHOD, min(CONNECTIONS, concurrency), timeout)
    times: dict[str, ClientTimes] = {}
    left = iter(enumerate(requests))

    async def one() -> None:
        for number, texts in left:
            name = f"{prefix}{number}"
            began = time.perf_counter_ns()
            payload = _encode(texts, name)
            sent = time.perf_counter_ns()
            raw = await transport.send(payload, number)
            received = time.perf_counter_ns()
            _decode(raw, len(texts))
            times[name] = ClientTimes(sent - began, sent, received, time.perf_counter_ns() - received)

    try:
        await asyncio.gather(*(one() for _ in range(concurrency)))
    except RequestFailedError as error:
        raise BenchError(f"a request failed with {error.kind}: {error}") from None
    finally:
        await transport.close()
    return times


def _encode(texts: Sequence[str], name: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, id=name)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(frame([text.encode() for text in texts]))
    payload: bytes = request.SerializeToString()
    return payload


def _decode(raw: bytes, sentences: int) -> "np.ndarray":  # type: ignore[type-arg]
    answer = service_pb2.ModelInferResponse.FromString(raw)
    place = [output.name for output in answer.outputs].index("embedding")
    return unframe_vectors(answer.raw_output_contents[place], sentences, vector_dtype("float")).copy()
