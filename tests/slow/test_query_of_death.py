"""A request that kills tritonserver kills two servers at most, and fails no other request.

One kind of request is known to kill Triton 2.51. The manager's filter refuses it, and is turned off here.
"""

import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
from tests.integration.serve import serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed import EmbeddingClient
from tritonembed_protocol.framing import frame

CALLERS = 4
UNFILTERED = (sys.executable, str(Path(__file__).with_name("unfiltered_serve.py")))


def poison() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="embedding", raw_input_contents=[frame([b"any text"])])
    request.inputs.add(name="text", datatype="BYTES", shape=(1, 1))
    request.outputs.add(name="embedding").parameters["classification"].int64_param = 1
    return request


class Callers:
    """Callers that send texts all the time, and compare every answer with the first."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.answered = 0
        self.lost: list[str] = []
        self.wrong = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        texts = [f"sentence {place} of caller {number}" for place in range((1, 16, 64, 1)[number % 4])]
        with EmbeddingClient(self.target) as client:
            expected = client.embed(texts, timeout=60).embeddings
            while not self._over.is_set():
                try:
                    found = client.embed(texts, timeout=300).embeddings
                except Exception as error:
                    self.lost.append(f"{type(error).__name__}: {error}")
                    continue
                self.answered += 1
                self.wrong += not np.allclose(found, expected, atol=1e-5)


def test_a_query_of_death_unknown_to_the_filter_kills_two_servers_and_no_other_request(shelf) -> None:
    arguments = ["--model", shelf("bert"), "--device=cpu", "--servers=2", "--tokenizer-instances=1", "--workers=2"]
    arguments += ["--max-restarts=0", "--no-reference"]
    with serving(*arguments, program=UNFILTERED) as manager, Callers(manager.target) as callers:
        with grpc.insecure_channel(manager.target) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            time.sleep(2)
            first = infer.future(poison(), timeout=300)
            assert first.code() is grpc.StatusCode.INTERNAL, first.details()
            assert "two servers died" in first.details()
            for _ in range(20):
                again = infer.future(poison(), timeout=5)
                assert again.code() is grpc.StatusCode.INTERNAL
                assert "two servers died" in again.details()
        # No restart is allowed, but both are back, because their deaths are explained.
        manager.until(lambda: [server["state"] for server in manager.status()["servers"]] == ["ready", "ready"])
        assert [server["restarts"] for server in manager.status()["servers"]] == [1, 1]
        time.sleep(2)
    assert callers.answered > 20
    assert not callers.lost
    assert not callers.wrong
