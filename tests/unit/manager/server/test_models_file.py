"""--model, repeated, and the file of --models: names, settings of each model, and the memory that they share."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.models_file import (
    ModelEntry,
    memory_parts,
    parse_models,
    read_models,
    refuse_weights,
    render_settings,
    served_as,
)
from tritonembed_manager.server.settings import RenderSettings


def test_a_plain_path_is_the_first_model():
    assert parse_models(["org/name"]) == [ModelEntry("org/name")]


def test_further_models_have_names():
    entries = parse_models(["first=./a", "bge=org/bge=x"])
    assert entries == [ModelEntry("./a", "first"), ModelEntry("org/bge=x", "bge")]
    assert [served.name for served in served_as(entries)] == ["embedding", "bge"]


def test_a_folder_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_models(["a=b", "./c=d"][:1]) == [ModelEntry("a=b")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["a", "b"], "--model: model 2 needs a name (--model NAME=PATH)"),
        (["x=a", "x=b"], "--model: two models are called x"),
        (["a", "embedding=b"], "--model: embedding is the first model"),
        (["a", "tokenizer=b"], "--model: tokenizer is a part of the model embedding"),
        (["a", "x y=b"], "--model: a name has 1 to 100"),
        (["a", "=b"], "--model: a name has 1 to 100"),
        (["a", "b_chunks=c"], "--model: a name must not end with"),
        (["m", *(f"m{number}=m" for number in range(32))], "--model: at most 32 models"),
    ],
)
def test_wrong_names_are_refused_in_one_line(given, reason):
    with pytest.raises(StartError) as caught:
        parse_models(given)
    assert str(caught.value).startswith(reason)
    assert str(caught.value).isprintable()


FILE = """
models:
  - path: ./first
  - name: bge
    path: org/bge
    replicas: 2
    dtype: float16
    quantization: fp8
    max_model_len: 512
    memory: 0.3
    gpus: [1]
"""


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


def test_a_file_has_the_settings_of_each_model(tmp_path):
    (tmp_path / "first").mkdir()
    first, second = read_models(file_with(tmp_path, FILE))
    assert first == ModelEntry(str(tmp_path / "first"))
    vllm = {"dtype": "float16", "quantization": "fp8", "max_model_len": 512}
    assert second == ModelEntry("org/bge", "bge", replicas=2, gpus=(1,), memory=0.3, vllm=vllm)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("models: []", "--models: models: "),
        ("models:\n - {path: a, secret: b}", "--models: models[0].secret: there is no such field"),
        ("models:\n - {name: a}", "--models: models[0].path: this field is missing"),
        ("models:\n - {path: a}\n - {path: b}", "--models: model 2 needs a name"),
        ("models:\n - {path: a, replicas: 0}", "--models: models[0].replicas: "),
        ("models: [", "--models: line 2: it is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, reason):
    with pytest.raises(StartError) as caught:
        read_models(file_with(tmp_path, text))
    assert str(caught.value).startswith(reason)


def test_a_missing_file_is_named_by_its_option(tmp_path):
    with pytest.raises(StartError, match="--models: it cannot be read: No such file"):
        read_models(tmp_path / "none")


def test_models_on_the_same_gpus_share_their_memory():
    one, two, three = ModelEntry("a"), ModelEntry("b", "b", memory=0.4), ModelEntry("c", "c")
    assert memory_parts([one]) == [1.0]
    assert memory_parts([one, two, three]) == pytest.approx([0.3, 0.4, 0.3])
    apart = [replace(one, gpus=(0,)), replace(two, gpus=(1,))]
    assert memory_parts(apart) == [1.0, 0.4]


@pytest.mark.parametrize("memory", [(0.7, 0.4), (1.0, None)])
def test_more_memory_than_there_is_is_refused(memory):
    first, second = memory
    entries = [ModelEntry("a", memory=first), ModelEntry("b", "b", memory=second)]
    with pytest.raises(StartError, match="share a GPU with embedding is over 1"):
        memory_parts(entries)


def test_each_model_is_rendered_with_its_own_settings():
    base = RenderSettings("a", device="cuda", replicas=1, vllm={"dtype": "auto", "gpu_memory_utilization": 0.8})
    entries = [ModelEntry("org/a"), ModelEntry("org/b", "b", replicas=2, memory=0.25, vllm={"dtype": "float16"})]
    first, second = render_settings(base, entries)
    assert (first.model, first.served.name, first.vllm["dtype"]) == ("org/a", "embedding", "auto")
    assert (second.model, second.served.name, second.vllm["dtype"]) == ("org/b", "b", "float16")
    assert first.gpu_memory_share() == pytest.approx(0.6)
    assert second.gpu_memory_share() == pytest.approx(0.1)


def test_gpus_need_a_gpu():
    with pytest.raises(StartError, match="gpus of b need --device cuda"):
        render_settings(RenderSettings("a"), [ModelEntry("a"), ModelEntry("b", "b", gpus=(0,))])


def test_models_that_are_loaded_in_turn_share_the_memory_of_those_that_are_loaded_together():
    entries = [ModelEntry("a"), ModelEntry("b", "b", memory=0.4), ModelEntry("c", "c")]
    assert memory_parts(entries, most=1) == [1.0, 0.4, 1.0]
    assert memory_parts(entries, most=2) == [0.5, 0.4, 0.5]
    with pytest.raises(StartError, match="the memory of some 2 models is over 1"):
        memory_parts([*entries, ModelEntry("d", "d", memory=0.7)], most=2)


def test_entries_of_one_name_with_weights_are_versions_of_one_model(tmp_path):
    entries = parse_models(["bge=./a@90%", "bge=./b@10%", "other=c@100%"])
    assert [(entry.path, entry.weight) for entry in entries] == [("./a", 90.0), ("./b", 10.0), ("c", 100.0)]
    assert [served.name for served in served_as(entries)] == ["embedding", "embedding", "other"]
    text = "models: [{name: a, path: x, weight: 99.5}, {name: a, path: x, dtype: float16, weight: 0.5}]"
    assert [entry.weight for entry in read_models(file_with(tmp_path, text))] == [99.5, 0.5]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["x=a@90%", "x=b@20%"], "the weights of x add up to 110 %, not to 100 %"),
        (["x=a@90%"], "the weights of x add up to 90 %, not to 100 %"),
        (["x=a", "x=b@10%"], "each version of x needs a weight"),
        (["x=a@50%", "x=a@50%"], "two versions of x have the same path and settings"),
        (["x=a@100%", "x=b@0%"], "a weight is a number above 0 and up to 100"),
        (["x=a@101%"], "a weight is a number above 0 and up to 100"),
        (["x=a@ten%"], "a weight is a number above 0 and up to 100"),
        (["x=a@nan%"], "a weight is a number above 0 and up to 100"),
        (["y=q", "x=a@-10%", "x=b@110%"], "a weight is a number above 0 and up to 100"),
    ],
)
def test_wrong_weights_are_one_line(given, reason):
    with pytest.raises(StartError, match=re.escape(f"--model: {reason}")) as caught:
        parse_models(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", ["0", "101", "many", "-1", ".nan"])
def test_a_wrong_weight_in_a_file_names_its_place(tmp_path, weight):
    text = f"models: [{{name: a, path: x, weight: {weight}}}]"
    with pytest.raises(StartError, match=re.escape("--models: models[0].weight: ")):
        read_models(file_with(tmp_path, text))


def test_versions_that_do_different_things_are_refused():
    entries = [ModelEntry("a", "x", task="embed", weight=50), ModelEntry("b", "x", task="score", weight=50)]
    with pytest.raises(StartError, match="the versions of x must all make vectors"):
        served_as(entries)


def test_one_server_has_no_versions():
    with pytest.raises(StartError, match="weights are for serve"):
        refuse_weights(parse_models(["x=a@90%", "x=b@10%"]), "--model")
    refuse_weights(parse_models(["x=a", "y=b"]), "--model")
