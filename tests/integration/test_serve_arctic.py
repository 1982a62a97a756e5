"""Arctic Inference's API of a manager with a real server, and messages of Arctic's own definition."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.integration.serve import Serve

from tritonembed import EmbeddingClient
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic

TEXTS = ["a sentence of a client", "zwei Wörter", "a much longer sentence that says nothing at all " * 5]


class Stub:
    """Like the stub generated from Arctic's definition, but with a connection per call, to reach both workers."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channels: list[grpc.Channel] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self._target, options)
        self._channels.append(channel)
        answer = getattr(arctic, f"{method.removeprefix('Get')}Response").FromString
        path = f"/arctic_inference.InferenceService/{method}"
        return channel.unary_unary(path, lambda message: message.SerializeToString(), answer)

    def close(self) -> None:
        """Closes all connections."""
        for channel in self._channels:
            channel.close()


@pytest.fixture
def stub(manager: Serve) -> Iterator[Stub]:
    """A stub for the manager."""
    made = Stub(manager.target)
    yield made
    made.close()


def vectors(answer: Any) -> Any:
    """The vectors of an EncodeResponse."""
    assert (answer.error, answer.n_prompts) == ("", len(answer.embedding_bytes_fp32))
    return np.stack([np.frombuffer(row, "<f4").reshape(answer.embedding_dim) for row in answer.embedding_bytes_fp32])


def test_encode_gives_the_vectors_of_kserve(manager: Serve, stub: Stub, model: Path) -> None:
    with EmbeddingClient(manager.target) as client:
        expected = client.embed(TEXTS).embeddings
        by_ids = client.embed_tokens([[2, 5, 3], [2, 3]]).embeddings
    for name in ("", str(model), model.name):
        request = arctic.EncodeRequest(request_id="mine", n_prompts=len(TEXTS), prompts=TEXTS, model_name=name)
        answer = stub.Encode(request, timeout=30)
        assert answer.request_id == "mine"
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)
    ids = [np.array(row, "<i4").tobytes() for row in ([2, 5, 3], [2, 3])]
    answer = stub.Encode(arctic.EncodeRequest(n_prompts=2, token_id_bytes_i32=ids), timeout=30)
    assert answer.request_id
    np.testing.assert_allclose(vectors(answer), by_ids, atol=1e-5)


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        ({"n_prompts": 2, "prompts": ["one"]}, "n_prompts is 2"),
        ({"n_prompts": 1, "prompts": ["one"], "model_name": "another"}, "model_name"),
        ({"n_prompts": 1, "token_id_bytes_i32": [b"\xff\xff\xff\x7f"]}, "token_ids"),
        ({"n_prompts": 1025, "prompts": ["one"] * 1025}, "1024"),
    ],
    ids=["count", "model", "ids", "too many"],
)
def test_a_bad_request_is_answered_ok_with_the_reason(stub: Stub, request_of: dict[str, Any], words: str) -> None:
    answer = stub.Encode(arctic.EncodeRequest(request_id="bad", **request_of), timeout=30)
    assert words in answer.error
    assert (answer.request_id, list(answer.embedding_bytes_fp32)) == ("bad", [])


def test_replica_info_and_health_check_report_the_true_replicas(stub: Stub, model: Path) -> None:
    info = stub.GetReplicaInfo(arctic.ReplicaInfoRequest(), timeout=10)
    assert (info.n_replicas, info.n_healthy_replicas) == (2, 2)
    found = [(each.model_name, each.task, each.ready) for each in info.replica_infos]
    assert found == [(model.name, "embed", True)] * 2
    assert stub.HealthCheck(arctic.HealthCheckRequest(), timeout=10).healthy


def test_abort_ends_the_wait_and_frees_the_place_from_any_worker(manager: Serve, stub: Stub) -> None:
    long = arctic.EncodeRequest(request_id="long", n_prompts=1024, prompts=["many words " * 30] * 1024)
    waiting = [stub.Encode.future(long, timeout=60) for _ in range(8)]
    asked = arctic.AbortRequest(request_id="long")
    # The calls reach their workers some time after they are sent.
    answers = manager.until(lambda: all(call.done() for call in waiting) or stub.Abort(asked, timeout=10).success)
    assert answers
    manager.until(lambda: stub.Abort(asked, timeout=10).success is False)
    assert "aborted" in {call.result(60).error for call in waiting}
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=30)
    assert manager.serves()


def test_abort_of_an_unknown_request_is_reported(stub: Stub) -> None:
    answer = stub.Abort(arctic.AbortRequest(request_id="never seen"), timeout=10)
    assert not answer.success
    assert "no request" in answer.message
