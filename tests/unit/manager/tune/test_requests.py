"""The requests of a load, and the process that sends them."""

import json

import pytest
from tests.models import ModelShelf
from tritonclient.grpc import service_pb2

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import DEFAULTS
from tritonembed_engine.tokenizing import TextTokenizer
from tritonembed_manager.errors import StartError
from tritonembed_manager.tune.attempts import Run
from tritonembed_manager.tune.load_process import LoadJob, client_processes, requests_per_second
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_manager.tune.measuring import _take
from tritonembed_manager.tune.server import CandidateFailedError
from tritonembed_manager.tune.texts import RequestMaker
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
    """A model that puts a prompt before every text unless told otherwise."""
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
    with pytest.raises(StartError, match="--load 1x4@2: this tokenizer has no texts of 1 tokens"):
        maker.requests("--load", LoadShape(1, 4, 2))


def test_a_request_with_more_text_than_a_server_takes_is_refused(shelf: ModelShelf, monkeypatch):
    monkeypatch.setattr("tritonembed_manager.tune.texts.MOST_BYTES", 1000)
    maker = RequestMaker(read_model_files(str(shelf("bert"))))
    with pytest.raises(StartError, match="--second-load 50x64@2: a request holds at most"):
        maker.requests("--second-load", LoadShape(50, 64, 2))


def test_a_job_survives_its_file():
    job = LoadJob("127.0.0.1:1", [(LoadShape(5, 2, 3), [b"\x00\xff", b""])], runs=3, seconds=0.5, cores=2)
    assert LoadJob.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    ("at_once", "cores", "processes"), [(1, 2, 1), (1024, 2, 6), (32, 2, 1), (96, 16, 4), (2, 64, 2), (5000, 16, 6)]
)
def test_clients_take_few_of_few_cores(at_once, cores, processes):
    assert client_processes(at_once, cores) == processes


def test_the_rate_does_not_depend_on_how_many_bursts_end_in_a_short_window():
    # Batches of 5 requests out of 10 at once, 1 s each: 5 requests a second, whether two or three bursts are seen.
    assert requests_per_second([2.0] * 10, 10) == requests_per_second([2.0] * 15, 10) == 5


def test_answers_are_found_among_other_output_and_an_error_ends_the_attempt():
    runs = {"5x2@3": []}
    answer = {"load": "5x2@3", "run": {"tokens_per_second": 1.0, "p50_ms": 2.0, "p99_ms": 3.0}}
    _take(["a warning", json.dumps(answer)], runs)
    assert runs == {"5x2@3": [Run(1.0, 2.0, 3.0)]}
    with pytest.raises(CandidateFailedError, match="failed: 3 UNAVAILABLE"):
        _take([json.dumps({"load": "5x2@3", "error": "requests of 5x2@3 failed: 3 UNAVAILABLE"})], runs)
