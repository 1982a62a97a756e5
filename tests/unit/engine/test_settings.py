"""model.json: its fields, and the errors that name wrong fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.settings import MODEL_VARIABLE, read_settings

COMMITTED = Path(__file__).parents[3] / "model_repository"


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)


def write(folder: Path, contents: Any) -> Path:
    text = contents if isinstance(contents, str) else json.dumps(contents, ensure_ascii=False)
    (folder / "model.json").write_text(text, encoding="utf-8")
    return folder


def test_the_committed_file_is_valid() -> None:
    assert read_settings(COMMITTED).model


def test_a_model_alone_takes_every_default(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, {"model": "some/model"}))
    assert settings.model == "some/model"
    assert settings.vllm == {}
    assert settings.revision is None
    assert settings.engine.executor == "auto"
    assert settings.engine.max_batch_tokens is None
    assert settings.engine.max_request_bytes == 32 * 1024 * 1024


def test_the_files_settings_arrive(tmp_path: Path) -> None:
    given = {
        "model": "/models/größe",
        "vllm": {"dtype": "float16", "revision": "abc", "max_model_len": 128},
        "engine": {
            "executor": "scheduler",
            "max_batch_tokens": 4096,
            "kernels": {"attention": False},
            "graphs": {"enabled": False, "seconds": 1.5},
        },
    }
    settings = read_settings(write(tmp_path, given))
    assert settings.model == "/models/größe"
    assert settings.vllm == given["vllm"]
    assert (settings.revision, settings.max_model_len) == ("abc", 128)
    assert settings.engine.executor == "scheduler"
    assert settings.engine.max_batch_tokens == 4096
    assert not settings.engine.kernels.attention
    assert settings.engine.kernels.add_layer_norm
    assert (settings.engine.graphs.enabled, settings.engine.graphs.seconds) == (False, 1.5)


def test_the_variable_overrides_the_model_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"model": "some/model", "vllm": {"dtype": "float16"}})
    monkeypatch.setenv(MODEL_VARIABLE, "other/model")
    settings = read_settings(tmp_path)
    assert (settings.model, settings.vllm) == ("other/model", {"dtype": "float16"})
    monkeypatch.setenv(MODEL_VARIABLE, "")
    assert read_settings(tmp_path).model == "some/model"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "m", "vllm": []}, "vllm"),
        ({"model": "m", "modell": "n"}, "modell"),
        ({"model": "m", "engine": {"exekutor": "auto"}}, "engine.exekutor"),
        ({"model": "m", "engine": {"executor": "fast"}}, "engine.executor"),
        ({"model": "m", "engine": {"max_batch_tokens": 0}}, "engine.max_batch_tokens"),
        ({"model": "m", "engine": {"max_batch_tokens": "many"}}, "engine.max_batch_tokens"),
        ({"model": "m", "engine": {"max_batch_tokens": True}}, "engine.max_batch_tokens"),
        ({"model": "m", "engine": {"max_batch_tokens": 262_145}}, "engine.max_batch_tokens"),
        ({"model": "m", "vllm": {"max_model_len": "512"}}, "vllm"),
        ({"model": "m", "vllm": {"max_model_len": -3}}, "vllm"),
        ({"model": "m", "engine": {"max_request_bytes": 0}}, "engine.max_request_bytes"),
        ({"model": "m", "engine": {"instruction_template": ""}}, "engine.instruction_template"),
        ({"model": "m", "engine": {"instruction_template": "Query: "}}, "engine.instruction_template"),
        (
            {"model": "m", "engine": {"instruction_template": "{instruction}{instruction}"}},
            "engine.instruction_template",
        ),
        ({"model": "m", "engine": {"max_waiting_sentences": 1023}}, "engine.max_waiting_sentences"),
        ({"model": "m", "engine": {"kernels": {"atention": True}}}, "engine.kernels.atention"),
        ({"model": "m", "engine": {"graphs": {"seconds": -1}}}, "engine.graphs.seconds"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(tmp_path: Path, given: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_settings(write(tmp_path, given))
    assert str(refused.value).startswith(f"model.json: {field}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"model": "m",\n}', r"model\.json is not JSON \(line 3\)"),
        ("", r"model\.json is not JSON \(line 1\)"),
        ('["model"]', r"model\.json: \S"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_reported_as_such(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"^{message}") as refused:
        read_settings(write(tmp_path, text))
    assert ": :" not in str(refused.value)


def test_a_file_that_is_not_utf8_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(b'{"model": "gr\xf6\xdfe"}')
    with pytest.raises(ModelError, match=r"^model\.json is not UTF-8"):
        read_settings(tmp_path)


def test_a_missing_file_is_reported_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        read_settings(tmp_path)
    assert str(refused.value) == "the model repository has no model.json"
