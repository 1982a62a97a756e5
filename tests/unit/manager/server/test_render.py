"""`render` writes a repository for a model and a machine. The tests compare protobuf messages, not text."""

import json
import shlex
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import TYPE_FP64, ModelInstanceGroup

from tritonembed_engine.errors import ModelError
from tritonembed_engine.settings import read_settings
from tritonembed_manager.errors import StartError
from tritonembed_manager.server.repository import (
    LENGTH_PARAMETER,
    MARKER,
    read_configs,
    render,
    served_models,
    template_folder,
    tritonserver_line,
)
from tritonembed_manager.server.settings import RenderSettings, model_reference, parse_gpus, resolve_reference
from tritonembed_protocol.served import ServedModel

KIND_CPU, KIND_GPU, KIND_MODEL = ModelInstanceGroup.KIND_CPU, ModelInstanceGroup.KIND_GPU, ModelInstanceGroup.KIND_MODEL


def rendered(tmp_path: Path, **settings):
    out = tmp_path / "repository"
    render(out, RenderSettings(**{"model": "org/name", **settings}))
    return read_configs(out), json.loads((out / "model.json").read_text())


def groups(config):
    return [(group.kind, group.count, list(group.gpus)) for group in config.instance_group]


def test_a_cpu_repository_has_cpu_instances_only(tmp_path):
    configs, model = rendered(tmp_path, device="cpu", tokenizer_instances=3)
    assert groups(configs["tokenizer"]) == [(KIND_CPU, 3, [])]
    assert groups(configs["embedder"]) == [(KIND_CPU, 1, [])]
    assert groups(configs["embedding"]) == []
    assert model["model"] == "org/name"
    assert "gpu_memory_utilization" not in model["vllm"]


def test_only_a_model_with_outputs_per_token_has_their_tensors(tmp_path, shelf):
    for name, expected in (("bert", ["sparse", "multi_vector"]), ("bert-cls", [])):
        (tmp_path / name).mkdir()
        configs, _ = rendered(tmp_path / name, model=str(shelf(name)))
        for model in ("embedder", "embedding"):
            names = [output.name for output in configs[model].output]
            assert [one for one in names if one in ("sparse", "multi_vector")] == expected
        maps = configs["embedding"].ensemble_scheduling.step[1].output_map
        assert {one for one in maps if one in ("sparse", "multi_vector")} == set(expected)


def test_replicas_are_counted_per_gpu_and_share_its_memory(tmp_path):
    configs, model = rendered(tmp_path, device="cuda", replicas=3, gpus=(0, 2))
    assert groups(configs["embedder"]) == [(KIND_GPU, 3, [0, 2])]
    assert model["vllm"]["gpu_memory_utilization"] == pytest.approx(0.3)


def test_the_given_share_of_gpu_memory_is_divided(tmp_path):
    _, model = rendered(tmp_path, device="cuda", replicas=2, vllm={"gpu_memory_utilization": 0.5})
    assert model["vllm"]["gpu_memory_utilization"] == pytest.approx(0.25)


def test_without_gpus_triton_takes_every_gpu(tmp_path):
    configs, _ = rendered(tmp_path, device="cuda")
    assert groups(configs["embedder"]) == [(KIND_GPU, 1, [])]


def test_tensor_parallel_replicas_name_their_gpus(tmp_path):
    configs, model = rendered(tmp_path, device="cuda", gpus=(4, 5, 6, 7), tensor_parallel_size=2)
    embedder = configs["embedder"]
    assert [(g.name, g.kind, g.count) for g in embedder.instance_group] == [
        ("embedder_tp0", KIND_MODEL, 1),
        ("embedder_tp1", KIND_MODEL, 1),
    ]
    devices = json.loads(embedder.parameters["devices"].string_value)
    assert devices == {"embedder_tp0": [4, 5], "embedder_tp1": [6, 7]}
    assert model["vllm"]["tensor_parallel_size"] == 2


def test_tensor_parallel_replicas_on_the_same_gpus_are_groups_of_their_own(tmp_path):
    configs, _ = rendered(tmp_path, device="cuda", tensor_parallel_size=2, replicas=2)
    devices = json.loads(configs["embedder"].parameters["devices"].string_value)
    assert devices == {"embedder_tp0": [0, 1], "embedder_tp1": [0, 1]}


def test_the_embedder_understands_the_devices_parameter(tmp_path):
    from google.protobuf import json_format

    from tritonembed_engine.stub.placement import visible_devices

    configs, _ = rendered(tmp_path, device="cuda", gpus=(0, 1, 2, 3), tensor_parallel_size=2)
    config = json_format.MessageToDict(configs["embedder"], preserving_proto_field_name=True)
    instance = {"model_instance_kind": "MODEL", "model_instance_name": "embedder_tp1_0"}
    assert visible_devices(instance, config, None) == "2,3"


def test_engine_settings_and_vllm_arguments_reach_model_json_and_the_engine_accepts_it(tmp_path):
    from tritonembed_engine.settings import read_settings

    _, model = rendered(
        tmp_path, max_batch_tokens=2048, executor="scheduler", vllm={"dtype": "float32", "max_model_len": 256}
    )
    assert model["engine"]["max_batch_tokens"] == 2048
    assert model["engine"]["executor"] == "scheduler"
    settings = read_settings(tmp_path / "repository")
    assert settings.vllm == {"dtype": "float32", "max_model_len": 256}


@pytest.mark.parametrize("template", ["", "Query: ", "{instruction}{instruction}"])
def test_an_instruction_template_has_one_place(tmp_path, template):
    with pytest.raises(StartError, match=r"^--instruction-template must hold \{instruction\} once$"):
        rendered(tmp_path, instruction_template=template)


def test_a_reference_and_determinism_reach_model_json(tmp_path):
    from tritonembed_engine.settings import DETERMINISTIC_BATCH_TOKENS, read_settings

    template = "Represent this for {instruction}: "
    _, model = rendered(tmp_path, reference="off", deterministic=True, instruction_template=template)
    assert model["engine"]["instruction_template"] == template
    assert (model["engine"]["reference"], model["engine"]["deterministic"]) == ("off", True)
    # A measured budget would change the shapes from start to start.
    assert read_settings(tmp_path / "repository").engine.max_batch_tokens == DETERMINISTIC_BATCH_TOKENS


def test_the_gate_of_int8_reaches_model_json(tmp_path):
    _, model = rendered(
        tmp_path, vllm={"quantization": "int8"}, quantization_quality=0.99, calibration="/data/texts.txt"
    )
    assert model["vllm"]["quantization"] == "int8"
    assert (model["engine"]["quantization_quality"], model["engine"]["calibration"]) == (0.99, "/data/texts.txt")


def test_only_a_server_in_int8_has_an_output_for_what_it_keeps(tmp_path):
    quality = [("quantization_quality", TYPE_FP64, [1])]
    for vllm, expected in (({"quantization": "int8"}, quality), ({"quantization": "fp8"}, []), ({}, [])):
        configs, _ = rendered(tmp_path, vllm=vllm, device="cpu")
        found = [(one.name, one.data_type, [*one.dims]) for one in configs["embedder"].output]
        assert [one for one in found if one[0] == "quantization_quality"] == expected
        assert "quantization_quality" not in [one.name for one in configs["embedding"].output]


def test_a_cache_is_off_unless_it_is_given_its_memory(tmp_path):
    from tritonembed_engine.settings import read_settings

    rendered(tmp_path)
    assert read_settings(tmp_path / "repository").engine.cache_bytes == 0
    rendered(tmp_path, cache_bytes=1 << 28)
    assert read_settings(tmp_path / "repository").engine.cache_bytes == 1 << 28


def test_a_reference_contradicts_no_reference(tmp_path):
    with pytest.raises(StartError, match="--reference and --no-reference"):
        resolve_reference(tmp_path / "reference.npz", True)
    assert resolve_reference(None, False) is None
    assert resolve_reference(None, True) == "off"


def test_settings_that_were_not_given_stay_as_committed(tmp_path):
    configs, model = rendered(tmp_path, queue_limits=True)
    template = read_configs(template_folder())
    for name, config in template.items():
        # These differ on a machine without a GPU.
        for one in (config, configs[name]):
            del one.instance_group[:]
            del one.dynamic_batching.preferred_batch_size[:]
        assert configs[name] == config
    assert model["engine"] == json.loads((template_folder() / "model.json").read_text())["engine"]


@pytest.mark.parametrize("settings", [{}, {"device": "cuda", "queue_limits": False}], ids=["cpu", "cuda"])
def test_without_queue_limits_triton_prefetches_batches(tmp_path, settings):
    configs, model = rendered(tmp_path, **settings)
    # On a CPU, the engine bounds waiting requests. On a GPU, the user has to.
    assert model["engine"].get("queue", "triton") == ("triton" if settings else "engine")
    for name in ("tokenizer", "embedder"):
        batching = configs[name].dynamic_batching
        # The conditions of Triton's PriorityQueue::SupportPrefetching.
        assert batching.priority_levels == 0
        assert not batching.HasField("default_queue_policy")
        assert not batching.priority_queue_policy
        assert batching.preferred_batch_size


def test_every_model_has_its_version_folder_and_its_python(tmp_path):
    rendered(tmp_path)
    out = tmp_path / "repository"
    assert (out / "tokenizer/1/model.py").is_file()
    assert (out / "embedder/1/model.py").is_file()
    assert (out / "embedding/1").is_dir()
    assert not list(out.rglob("__pycache__"))


def test_a_folder_that_render_wrote_is_replaced_as_a_whole(tmp_path):
    rendered(tmp_path, model="first")
    (tmp_path / "repository" / "left-over").touch()
    _, model = rendered(tmp_path, model="second")
    assert model["model"] == "second"
    assert not (tmp_path / "repository" / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(StartError, match="was not written by render"):
        render(out, RenderSettings(model="m"))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_force_keeps_other_files_of_the_folder(tmp_path):
    out = tmp_path / "mine"
    (out / "tokenizer").mkdir(parents=True)
    (out / "tokenizer" / "old").touch()
    (out / "thesis.txt").write_text("years of work")
    render(out, RenderSettings(model="m"), force=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert not (out / "tokenizer" / "old").exists()
    assert {"tokenizer", "embedder", "embedding", "model.json", MARKER} <= {path.name for path in out.iterdir()}


def test_a_render_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tritonembed_manager.server.repository.model_json", no_space)
    with pytest.raises(StartError, match="No space left"):
        render(tmp_path / "out", RenderSettings(model="m"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"device": "cpu", "gpus": (0,)}, "--gpus needs --device cuda"),
        ({"device": "cpu", "tensor_parallel_size": 2}, "--tensor-parallel-size above 1 needs"),
        ({"device": "cuda", "gpus": (1, 1)}, "twice"),
        ({"device": "cuda", "gpus": (0, 1, 2), "tensor_parallel_size": 2}, "does not divide"),
        ({"max_batch_tokens": 262_145}, "--max-batch-tokens must be at most 262144"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, line):
    with pytest.raises(StartError, match=line):
        RenderSettings(model="m", **settings)


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_of_gpu_memory_out_of_range_is_refused(tmp_path, share):
    with pytest.raises(StartError, match="gpu-memory-utilization"):
        rendered(tmp_path, device="cuda", vllm={"gpu_memory_utilization": share})


def test_a_model_folder_becomes_absolute_and_a_hub_name_stays(tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_reference("bert") == str(tmp_path / "bert")
    assert model_reference("Snowflake/snowflake-arctic-embed-m-v1.5") == "Snowflake/snowflake-arctic-embed-m-v1.5"


@pytest.mark.parametrize("model", ["/no/such/folder", "./bert", "~/bert-that-is-not-there", "a/b/c"])
def test_a_model_folder_that_is_not_there_is_refused(model):
    with pytest.raises(StartError, match="there is no folder"):
        model_reference(model)


def test_an_empty_model_is_not_the_current_folder():
    with pytest.raises(StartError, match="--model is empty"):
        model_reference("")


def test_gpus_are_numbers_separated_by_commas():
    assert parse_gpus("0,1, 3") == (0, 1, 3)
    assert parse_gpus(None) == ()
    for wrong in ("a", "0,,1", "-1", "0;1"):
        with pytest.raises(StartError, match="--gpus"):
            parse_gpus(wrong)


def test_triton_hands_smaller_batches_to_a_cpu(tmp_path: Path) -> None:
    batches = {}
    for device in ("cpu", "cuda"):
        render(tmp_path / device, RenderSettings("some/model", device=device))
        embedder = read_configs(tmp_path / device)["embedder"]
        (batches[device],) = embedder.dynamic_batching.preferred_batch_size
    assert batches["cpu"] < batches["cuda"]


@pytest.mark.parametrize("name", ["models", "my models", "a;b $(c) 'd'", "a\nb"])
def test_the_line_that_render_prints_can_be_pasted_into_a_shell(name):
    assert shlex.split(tritonserver_line(Path(name))) == ["tritonserver", f"--model-repository={name}"]


def several(tmp_path: Path, *models):
    out = tmp_path / "repository"
    render(out, *models)
    return out, read_configs(out)


def test_several_models_have_triton_models_and_settings_of_their_own(tmp_path):
    first = RenderSettings("org/first", tokenizer_instances=3)
    second = RenderSettings("org/second", replicas=2, vllm={"dtype": "float16"}, served=ServedModel("bge-m3"))
    out, configs = several(tmp_path, first, second)
    assert set(configs) == {*ServedModel().triton_models, *ServedModel("bge-m3").triton_models}
    assert served_models(configs) == [ServedModel(), ServedModel("bge-m3")]
    assert groups(configs["embedder"]) == [(KIND_CPU, 1, [])]
    assert groups(configs["bge-m3_embedder"]) == [(KIND_CPU, 2, [])]
    assert groups(configs["tokenizer"]) == [(KIND_CPU, 3, [])]
    for ensemble in ("bge-m3", "bge-m3_chunks"):
        steps = [step.model_name for step in configs[ensemble].ensemble_scheduling.step]
        assert steps == ["bge-m3_tokenizer", "bge-m3_embedder"]
        assert configs[ensemble].name == ensemble
    for name, file, model in (
        ("embedder", "model.json", "org/first"),
        ("bge-m3_tokenizer", "bge-m3/model.json", "org/second"),
    ):
        assert configs[name].parameters["model_json"].string_value == file
        assert json.loads((out / file).read_text())["model"] == model


def test_one_model_has_no_parameter_for_its_settings(tmp_path):
    configs, _ = rendered(tmp_path)
    assert "model_json" not in configs["embedder"].parameters
    assert served_models(configs) == [ServedModel()]


def test_the_engine_reads_the_settings_of_the_model_that_it_is_asked_for(tmp_path, monkeypatch):
    out, _ = several(tmp_path, RenderSettings("org/first"), RenderSettings("org/second", served=ServedModel("other")))
    monkeypatch.setenv("TRITONEMBED_MODEL", "org/mine")
    assert read_settings(out).model == "org/mine"
    assert read_settings(out, "other/model.json").model == "org/second"
    with pytest.raises(ModelError, match=r"the model repository has no third/model\.json"):
        read_settings(out, "third/model.json")


def test_the_embedder_tells_the_length_of_the_longest_text_if_it_is_known(tmp_path, shelf):
    configs, _ = rendered(tmp_path, model=str(shelf("bert")))
    assert configs["embedder"].parameters[LENGTH_PARAMETER].string_value == "64"
    configs, _ = rendered(tmp_path, model=str(shelf("bert")), vllm={"max_model_len": 32})
    assert configs["embedder"].parameters[LENGTH_PARAMETER].string_value == "32"
    configs, _ = rendered(tmp_path, model="org/unknown")
    assert LENGTH_PARAMETER not in configs["embedder"].parameters
