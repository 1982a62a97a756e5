"""A real server keeps batches short once small requests come beside large ones; health checks do not count."""

import time
import urllib.request
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_engine.stub.metrics import PERIOD_SECONDS
from tritonembed_perf.models import write_bert
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_protocol.framing import frame
from tritonembed_protocol.types import HEALTH_CHECK_ID

LARGE = [b"word " * 48] * 400


def request(texts: list[bytes], id: str = "") -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="embedding", id=id, raw_input_contents=[frame(texts)])
    message.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    return message


def batches(server: RunningServer) -> float:
    """All that the engine has computed, once it has exported its counters."""
    time.sleep(2 * PERIOD_SECONDS)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("tritonembed_batches_total{"))


def test_a_small_request_makes_the_next_large_ones_batches_short_and_a_health_check_does_not(tmp_path: Path) -> None:
    # Large enough that no CPU computes half of a usual batch in the time of a short one.
    model = write_bert(tmp_path / "model", layers=6, hidden=384, heads=12, intermediate=1536)
    with (
        running_server(str(model), ["--device=cpu", "--replicas=1", "--no-reference"]) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer  # type: ignore[no-untyped-call]

        def batches_of_a_large_one() -> float:
            before = batches(server)
            infer(request(LARGE), timeout=120)
            return batches(server) - before

        # The first measures the speed.
        batches_of_a_large_one()
        infer(request([b"ready?"] * 3, HEALTH_CHECK_ID), timeout=60)
        few = batches_of_a_large_one()
        infer(request([b"a query"]), timeout=60)
        assert batches_of_a_large_one() > 2 * few
