"""--served-model-name names the model on every endpoint. For Triton, each name means the ensemble."""

import json
import os
from dataclasses import asdict
from unittest import mock

import grpc.aio
import numpy as np
import pytest
import tritonclient.http.aio
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_request, vector
from tests.unit.manager.router.apis.http.conftest import running
from tests.unit.manager.router.apis.test_arctic import serving as arctic_serving
from tests.unit.manager.router.apis.test_kserve_grpc import endpoint
from tritonclient.grpc import service_pb2
from typer.testing import CliRunner

from tritonembed_manager import cli
from tritonembed_manager.commands.app import app
from tritonembed_manager.errors import StartError
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.router.control import supervisor
from tritonembed_manager.router.control.settings import DrainTime
from tritonembed_manager.router.data.model_names import OF_TRITON, ServedNames, served_names
from tritonembed_manager.router.link import WorkerConfig
from tritonembed_manager.server.vllm_arguments import one_value_each, parse
from tritonembed_perf.families import rerankers
from tritonembed_protocol.served import ServedModel

LONG = "org/" + "n" * 200
NAMES = ServedNames(("minilm", LONG), ("/models/all-MiniLM-L6-v2",))


def test_a_folder_is_named_by_its_last_part_and_its_paths_stay_valid(tmp_path, monkeypatch):
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for written in ("./models/my-model", "models/my-model/", f"{tmp_path}/models/my-model"):
        names = served_names(written, ())
        assert names.ids == ("my-model",)
        assert all(name in names for name in ("my-model", written, f"{tmp_path}/models/my-model", "embedding"))
        assert "models" not in names
    monkeypatch.chdir(tmp_path / "models" / "my-model")
    assert served_names(".", ()).model == "my-model"


def test_a_name_of_the_hub_stays_as_it_is_and_its_last_part_is_accepted():
    names = served_names("org/a-model", ())
    assert (names.ids, names.to_model("org/a-model")) == (("org/a-model",), "embedding")
    assert "a-model" in names
    assert "org" not in names


def test_given_names_replace_the_models_own(tmp_path):
    names = served_names(str(tmp_path), ["minilm", "other", "minilm"])
    assert names.ids == ("minilm", "other")
    assert str(tmp_path) not in names


def test_tritons_own_names_are_never_an_alias(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    names = served_names(str(tmp_path / "tokenizer"), ())
    assert names.model == "tokenizer"
    assert [names.to_model(name) for name in ("tokenizer", "embedder", "another")] == [
        "tokenizer",
        "embedder",
        "another",
    ]


def test_a_part_of_an_alias_is_that_part_of_the_model():
    assert [NAMES.to_model(f"minilm_{part}") for part in ("embedder", "chunks", "tokenizer", "other")] == [
        "embedder",
        "embedding_chunks",
        "tokenizer",
        "minilm_other",
    ]


def test_each_model_has_names_of_its_own():
    bge = ServedNames(("bge", "bge-m3"), ("org/bge",), ServedModel("bge"))
    names = ServedNames(("minilm",), more=(bge,))
    assert [names.to_model(name) for name in ("minilm", "embedder", "bge-m3", "org/bge_embedder", "bge_chunks")] == [
        "embedding",
        "embedder",
        "bge",
        "bge_embedder",
        "bge_chunks",
    ]
    assert names.find("org/bge") is bge
    assert names.of_part("bge_tokenizer") is bge
    assert names.find("bge_tokenizer") is None
    assert ServedNames.from_json(json.loads(json.dumps(asdict(names)))) == names


@pytest.mark.parametrize(
    "name", ["", "a\x1b[31m", "a\nb", "a\0", *sorted({*OF_TRITON} - {"embedding"}), "n" * 256, "\udcff"]
)
def test_a_name_that_no_client_could_use_is_refused_at_the_start(name):
    with pytest.raises(StartError, match="--served-model-name") as caught:
        served_names("m", [name])
    assert str(caught.value).isprintable()


@pytest.fixture
def settings(monkeypatch):
    """The settings of `serve` for a command line."""
    found = []
    monkeypatch.setattr(supervisor, "run_serve", found.append)

    def run(*arguments, env=None):
        found.clear()
        monkeypatch.setattr(cli.sys, "argv", ["tritonembed-manager", "serve", *arguments])
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        # The command cleans the environment, which later tests need as it was.
        with mock.patch.dict(os.environ), pytest.raises(SystemExit):
            cli.main()
        return found[0] if found else None

    return run


@pytest.mark.parametrize(
    "given",
    [
        ["--served-model-name", "a", "b", "--port", "7"],
        ["--served-model-name", "a", "--served-model-name=b", "--port", "7"],
        ["--port", "7", "--served_model_name", "a", "b"],
    ],
)
def test_several_names_are_given_as_in_vllm(settings, given):
    found = settings("--model", "org/name", "--device", "cpu", *given)
    assert (found.port, found.names.ids) == (7, ("a", "b"))
    assert "served_model_name" not in found.launch.plans[0].render.vllm


def test_the_name_comes_from_the_environment_and_names_attached_servers_too(settings):
    found = settings("--server", "host:1", env={"TRITONEMBED_SERVED_MODEL_NAME": "a b"})
    assert found.names == ServedNames(("a", "b"))


def test_only_names_are_spread():
    words = ["render", "out", "--served-model-name", "a", "b", "-x", "c", "--served-model-name=d", "e"]
    spread = ["render", "out", "--served-model-name", "a", "--served-model-name", "b", *words[5:]]
    assert one_value_each(words) == spread


@pytest.mark.parametrize("command", [["replica"], ["render", "out"], ["tune", "out"]])
def test_commands_without_a_router_refuse_the_option(command, tmp_path):
    arguments = [*command, "--model", "org/name", "--device", "cpu", "--served-model-name", "minilm"]
    result = CliRunner().invoke(app, [word.replace("out", str(tmp_path / "out")) for word in arguments])
    assert result.exit_code == 2
    assert "--served-model-name is an option of `serve`" in result.output


def test_the_options_variable_is_not_vllms(monkeypatch):
    assert parse([], environment={"TRITONEMBED_SERVED_MODEL_NAME": "a"}) == {}


@pytest.fixture
async def plane():
    async with data_plane(2) as plane:
        yield plane


async def test_openai_has_the_name_in_every_answer(plane):
    async with running(plane.dispatcher, names=NAMES) as found:
        listed = (await found.get("/v1/models")).body["data"]
        assert [model["id"] for model in listed] == ["minilm", LONG]
        for name in ("minilm", LONG, "/models/all-MiniLM-L6-v2", "embedding", None):
            answer = await found.post("/v1/embeddings", json={"input": "a", "model": name})
            assert (answer.status, answer.body["model"]) == (200, "minilm")
        assert (await found.get(f"/v1/models/{LONG}")).body["id"] == LONG
        assert (await found.get("/v1/models//models/all-MiniLM-L6-v2")).body["id"] == "minilm"
        assert (await found.post("/v1/embeddings", json={"input": "a", "model": "another"})).status == 404


@pytest.mark.parametrize("name", ["minilm", LONG, "/models/all-MiniLM-L6-v2"])
async def test_kserve_over_http_accepts_the_name_and_answers_with_it(plane, name):
    for fake in plane.fakes:
        fake.statistics.model_stats.add(name="embedding", version="1", inference_count=2)
    async with running(plane.dispatcher, names=NAMES) as found:
        async with tritonclient.http.aio.InferenceServerClient(found.base.removeprefix("http://")) as client:
            assert await client.is_model_ready(name)
            assert await client.is_model_ready(name, "1")
            assert (await client.get_model_metadata(name))["name"] == name
            assert (await client.get_model_config(name))["name"] == name
            [stats] = (await client.get_inference_statistics(name))["model_stats"]
            assert (stats["name"], stats["inference_count"]) == (name, 4)
            text = tritonclient.http.InferInput("text", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[b"one"]], dtype=np.object_))
            answer = await client.infer(name, [text], model_version="1")
            assert answer.get_response()["model_name"] == name
            assert answer.as_numpy("embedding")[0, 0] == vector(b"one").tobytes()
        # Vectors as JSON are refused under each name.
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["one"]}
        path = f"/v2/models/{name.replace('/', '%2F')}/infer"
        assert (await found.raw("POST", path, json={"inputs": [tensor]})).status == 400
        raw = {"Inference-Header-Content-Length": "0"}
        assert (await found.raw("POST", path, data=b"one", headers=raw)).status == 200
    assert {request.model_name for fake in plane.fakes for request in fake.requests} == {"embedding"}


@pytest.mark.parametrize("name", ["minilm", LONG, "/models/all-MiniLM-L6-v2"])
async def test_kserve_over_grpc_accepts_the_name_and_answers_with_it(name):
    async with endpoint(2, names=NAMES) as (plane, stub):
        for fake in plane.fakes:
            fake.statistics.model_stats.add(name="embedding", version="1", inference_count=2)
        request = infer_request(b"one")
        request.model_name, request.id = name, "mine"
        answer = await stub.ModelInfer(request, timeout=10)
        assert (answer.model_name, answer.raw_output_contents[0][4:]) == (name, vector(b"one").tobytes())
        async for streamed in stub.ModelStreamInfer(iter([request]), timeout=10):
            assert streamed.infer_response.model_name == name
            assert streamed.infer_response.raw_output_contents[0][4:] == vector(b"one").tobytes()
        seen = [request for fake in plane.fakes for request in fake.requests]
        assert [(one.model_name, one.id) for one in seen] == [("embedding", "mine")] * 2
        assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=10)).ready
        assert (await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name), timeout=10)).name == name
        assert (await stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=10)).config.name == name
        [stats] = (await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=name), timeout=10)).model_stats
        assert (stats.name, stats.inference_count) == (name, 4)
        with pytest.raises(grpc.aio.AioRpcError, match="unknown model"):
            await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="another"), timeout=10)


@pytest.mark.parametrize(
    "message", [b"", b"\x0a", b"\x0a\x05", b"\x0a\x05ab", b"\x0a\x80", b"\x0a\x80\x80\x01", b"\x0a\x01\xff"]
)
async def test_bytes_that_do_not_begin_with_a_name_are_passed_on_unchanged(message):
    async def infer(request):
        assert request == message
        return b"answer"

    assert await NAMES.infer(message, infer) == b"answer"


async def test_arctic_accepts_every_name_and_reports_the_first(plane):
    async with arctic_serving(plane.dispatcher, names=NAMES) as client:
        for name in ("minilm", LONG, "/models/all-MiniLM-L6-v2", ""):
            assert not (await client.encode("a", model_name=name)).error
        assert "model_name" in (await client.encode("a", model_name="another")).error
        info = await client.GetReplicaInfo(arctic.ReplicaInfoRequest())
        assert {replica.model_name for replica in info.replica_infos} == {"minilm"}


def test_a_reranker_is_known_by_its_files_and_an_attached_one_by_its_name(settings, tmp_path):
    folder = tmp_path / "ranker"
    folder.mkdir()
    rerankers.ce_bert(folder)
    found = settings("--model", str(folder), "--device", "cpu")
    assert found.names.served == found.launch.plans[0].render.served == ServedModel("rerank", "score")
    found = settings("--model", "org/name", f"--model=mine={folder}", "--device", "cpu")
    assert [one.served.task for one in found.names.models] == ["embed", "score"]
    found = settings("--server", "host:1", "--model", "a", "--model", "mine=score")
    assert [one.served for one in found.names.models] == [ServedModel(), ServedModel("mine", "score")]
    found = settings("--server", "host:1", "--task", "score")
    assert found.names.served.name == "rerank"
    # The workers get all of it.
    config = found.worker_config(1, DrainTime(1, 1, 0))
    assert WorkerConfig.from_json(json.loads(json.dumps(config.to_json()))).names == found.names
