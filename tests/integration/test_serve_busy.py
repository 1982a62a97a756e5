"""A server that computes a huge request is busy, not hung: it answers others meanwhile and is not restarted."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.integration.serve import Serve, serving
from tritonclient.grpc import InferenceServerClient, InferInput

from tritonembed_perf.models import write_bert

LIMIT_S = 20.0
"""--forward-timeout: the time of a request that sets none."""
HUGE = ["word " * 500] * 40
LOADS = ('tritonembed_load{server="server-0"}', 'tritonembed_load{server="server-0",instance=')
"""The manager's and the engine's."""
LONG = 400
"""Tokens of a sentence."""


def embed(manager: Serve, texts: Sequence[str]) -> int:
    """The number of vectors in the answer of /v1/embeddings. Raises HTTPError."""
    body = json.dumps({"input": list(texts), "encoding_format": "base64"}).encode()
    url = f"http://127.0.0.1:{manager.http_port}/v1/embeddings"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=600) as answer:
        return len(json.load(answer)["data"])


def timed_embed(manager: Serve, texts: Sequence[str]) -> tuple[int, float]:
    """The number of vectors, and the seconds that they took."""
    began = time.monotonic()
    return embed(manager, texts), time.monotonic() - began


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A manager of one replica that needs half a second per batch, with impatient checks."""
    model = write_bert(tmp_path_factory.mktemp("slow") / "model")
    options = ["--num-replicas=1", "--tokenizer-instances=1", "--no-reference", f"--forward-timeout={LIMIT_S}"]
    with serving(
        "--model", model, "--device=cpu", *options, "--health-interval=0.1", "--health-timeout=0.3"
    ) as started:
        yield started


def shown(manager: Serve, start: str) -> float:
    """The sum of the manager's metrics whose lines begin like this."""
    with urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def test_a_busy_server_answers_small_requests_and_is_not_restarted(manager: Serve) -> None:
    seconds, loads = [], []
    # If this test fails here, the next one still finds an idle server: the huge request is waited for.
    with ThreadPoolExecutor(1) as pool:
        huge = pool.submit(timed_embed, manager, HUGE)
        while not huge.done():
            seconds.append(timed_embed(manager, ["a small one"])[1])
            loads.append([shown(manager, each) for each in (*LOADS, "tritonembed_running_requests")])
    vectors, huge_seconds = huge.result()
    assert vectors == len(HUGE)
    # This is longer than three checks.
    assert huge_seconds > 1.2
    # A small request takes two batches. It would take all of the huge one's, about twenty, if it waited for its end.
    assert len(seconds) >= 4
    assert max(seconds) < huge_seconds / 2
    assert manager.server("server-0")["restarts"] == 0
    # Both know how long the rest of the huge request takes, and then that nothing is left.
    for most in map(max, zip(*loads, strict=True)):
        assert most > 0
    assert max(load for load, *_ in loads) < 10 * huge_seconds
    assert 0 < shown(manager, "tritonembed_work_seconds_total") < 10 * huge_seconds
    manager.until(lambda: not any(shown(manager, each) for each in LOADS))


def computed(manager: Serve) -> float:
    """Tokens that the engine has embedded."""
    address = manager.server("server-0")["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("tritonembed_tokens_total{"))


def test_a_request_cancelled_by_a_client_of_the_embedder_is_not_computed_further(manager: Serve) -> None:
    sentence = np.array([101, *[2000] * (LONG - 2), 102], "<i4").tobytes()
    ids = InferInput("token_ids", [len(HUGE), 1], "BYTES")
    ids.set_data_from_numpy(np.array([[sentence]] * len(HUGE), dtype=np.object_))
    before = computed(manager)
    with InferenceServerClient(manager.server("server-0")["address"]) as triton:
        call = triton.async_infer("embedder", [ids], callback=lambda result, error: None)
        manager.until(lambda: computed(manager) > before)
        call.cancel()
    # This is long enough for the whole request. Checks are computed meanwhile.
    time.sleep(5.0)
    assert computed(manager) < before + 0.7 * len(HUGE) * LONG


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once(manager: Serve) -> None:
    began = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as caught:
        # At the speed of the earlier test, this would take minutes.
        embed(manager, HUGE * 25)
    assert caught.value.code == 504
    message = json.loads(caught.value.read())["error"]["message"]
    assert message.startswith("it would end after its deadline passed: about ")
    assert "tokens per second" in message
    assert time.monotonic() - began < LIMIT_S / 2
    assert embed(manager, ["still here"]) == 1


def test_a_killed_manager_ends_its_servers_and_workers(manager: Serve) -> None:
    """This is the last test, because it ends the manager."""
    names = {process.name for process in manager.family()}
    assert "tritonserver" in names
    assert manager.workers()
    assert manager.regions()
    manager.process.kill()
    manager.process.wait()
    manager.until(lambda: not manager.family())
    manager.until(lambda: not manager.regions())
