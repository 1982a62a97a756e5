"""A load's requests, and the runs that send them."""

import asyncio
import multiprocessing
import os
import socket
import sys
import time

import numpy as np
import psutil
import pytest
from tests.fakes.triton import FakeTriton
from tests.models import ModelShelf
from tritonclient.grpc import service_pb2

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import DEFAULTS
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.tune.loadgen.load import LoadResult, Samples, encode_request
from tritonembed_manager.tune.loads import LoadShape, RequestMaker
from tritonembed_manager.tune.run import client_processes, figures, requests_per_second, run_load
from tritonembed_manager.tune.server import CandidateFailedError, CandidateServer
from tritonembed_manager.tune.trials import LoadRun
from tritonembed_perf.models import write_bert


def texts_of(request):
    message = service_pb2.ModelInferRequest.FromString(request)
    raw, texts = message.raw_input_contents[0], []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    assert list(message.inputs[0].shape) == [len(texts), 1]
    return texts


@pytest.fixture(scope="module")
def with_default_prompt(tmp_path_factory):
    """A model that by default puts a prompt before every text."""
    return write_bert(
        tmp_path_factory.mktemp("prompted"),
        layers=1,
        hidden=32,
        heads=2,
        intermediate=32,
        max_length=64,
        prompts={"query": "find this: "},
        default_prompt_name="query",
    )


@pytest.mark.parametrize("name", ["bert", "roberta", "with a default prompt"])
def test_every_sentence_has_exactly_the_tokens_that_the_server_will_count(name, shelf: ModelShelf, with_default_prompt):
    files = read_model_files(str(with_default_prompt if name == "with a default prompt" else shelf(name)))
    requests = RequestMaker(files).requests("--load", LoadShape(20, 16, 4))
    assert len(requests) == 1024 // 16
    texts = [text for request in requests for text in texts_of(request)]
    assert len(set(texts)) == 1024
    [ids] = TextTokenizer(files).encode_requests([(texts, DEFAULTS)])
    assert {len(one) // 4 for one in ids} == {20}


def test_a_length_that_special_tokens_alone_exceed_is_refused(shelf: ModelShelf):
    maker = RequestMaker(read_model_files(str(shelf("bert"))))
    with pytest.raises(StartError, match="--load 1x4@2: no text has a length of 1 tokens"):
        maker.requests("--load", LoadShape(1, 4, 2))


def test_a_request_with_more_text_than_a_server_accepts_is_refused(shelf: ModelShelf, monkeypatch):
    monkeypatch.setattr("tritonembed_manager.tune.loads.MAX_REQUEST_BYTES", 1000)
    maker = RequestMaker(read_model_files(str(shelf("bert"))))
    with pytest.raises(StartError, match="--second-load 50x64@2: a request holds at most"):
        maker.requests("--second-load", LoadShape(50, 64, 2))


@pytest.mark.parametrize(
    ("at_once", "cores", "processes"), [(1, 2, 1), (1024, 2, 6), (32, 2, 1), (96, 16, 4), (2, 64, 2), (5000, 16, 6)]
)
def test_clients_use_few_cores_on_a_small_machine(at_once, cores, processes):
    assert client_processes(at_once, cores) == processes


def test_the_rate_does_not_depend_on_the_bursts_that_end_in_a_short_window():
    # Of 10 concurrent requests, 5 end per second. The rate is 5 per second, whether two or three bursts are measured.
    assert requests_per_second([2.0] * 10, 10) == requests_per_second([2.0] * 15, 10) == 5


def test_a_run_has_its_figures_and_failed_requests_end_the_trial():
    part = Samples(np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.zeros(2))
    assert figures(LoadShape(5, 2, 3), LoadResult(part, 1.0), 1.0) == LoadRun(6 * 2 * 5, 500.0, 500.0)
    part.errors["UNAVAILABLE"] = 3
    with pytest.raises(CandidateFailedError, match="requests of 5x2@3 failed: 3 UNAVAILABLE"):
        figures(LoadShape(5, 2, 3), LoadResult(part, 1.0), 1.0)
    nothing = Samples(np.empty(0), np.empty(0), np.empty(0))
    with pytest.raises(CandidateFailedError, match="no request of 5x2@3 was answered within 1 s"):
        figures(LoadShape(5, 2, 3), LoadResult(nothing, 1.0), 1.0)


class Server:
    """A candidate's server, as a load sees it."""

    check = CandidateServer.check

    def __init__(self, target):
        self.target = target
        self.over = asyncio.get_running_loop().create_future()


async def test_a_load_runs_against_a_server():
    async with FakeTriton() as fake:
        run = await run_load(Server(fake.address), LoadShape(5, 2, 3), [encode_request(["a", "b"])], 0.5)
    assert run.tokens_per_second > 0
    assert 0 < run.p50_ms <= run.p99_ms
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("ends", ["broken", "cancelled"])
async def test_a_load_ends_with_its_server_and_with_the_command(ends):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(f"127.0.0.1:{silent.getsockname()[1]}")
        running = asyncio.create_task(run_load(server, LoadShape(5, 2, 3), [b""], 5))
        connection, _ = await asyncio.to_thread(silent.accept)
        began = time.monotonic()
        if ends == "broken":
            server.over.set_exception(ManagerError("a python process died"))
            with pytest.raises(CandidateFailedError, match="a python process died"):
                await running
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert time.monotonic() - began < 30
        connection.close()
    assert not multiprocessing.active_children()


async def test_requests_that_fail_because_the_server_died_give_its_reason():
    async with FakeTriton() as fake:
        server = Server(fake.address)
        running = asyncio.create_task(run_load(server, LoadShape(5, 2, 3), [b"no request"], 0.5))
        await asyncio.sleep(2.5)
        server.over.set_exception(ManagerError("a python process died"))
        with pytest.raises(CandidateFailedError, match="a python process died"):
            await running


LOAD = """
from tritonembed_manager.tune.loadgen.clients import run_closed_loop
if __name__ == "__main__":
    run_closed_loop("{target}", [b""], 2, processes=2, seconds=600)
"""


async def test_the_clients_of_a_killed_process_end(tmp_path):
    async with FakeTriton() as fake:
        (tmp_path / "load.py").write_text(LOAD.format(target=fake.address))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        parent = await asyncio.create_subprocess_exec(sys.executable, tmp_path / "load.py", env=environment)
        while len(fake.requests) < 20:
            assert parent.returncode is None
            await asyncio.sleep(0.1)
        clients = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        await parent.wait()
        assert len(clients) >= 2
        assert not (await asyncio.to_thread(psutil.wait_procs, clients, timeout=60))[1]
