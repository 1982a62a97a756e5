"""The embedding space: what changes it, and what does not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models import ModelShelf

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model import contents
from tritonembed_engine.model.contents import digest_of
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.parameters import check_space
from tritonembed_engine.settings import ModelSettings
from tritonembed_protocol.space import is_space, model_part


def space_of(folder: Path, dtype: str = "float32", **vllm: Any) -> str:
    settings = ModelSettings.model_validate({"model": str(folder), "vllm": vllm})
    return embedding_space(settings, read_model_files(str(folder)), dtype)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(shelf: ModelShelf, tmp_path: Path) -> Path:
    return shutil.copytree(shelf("bert"), tmp_path / "model")


def flip(file: Path, at: int) -> None:
    """Change one byte, and nothing that `ls -l` shows."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_copy_under_another_name_has_the_same_space(folder: Path, tmp_path: Path) -> None:
    found = space_of(folder)
    assert is_space(found)
    assert found.endswith("-float32")
    assert space_of(shutil.copytree(folder, tmp_path / "other", copy_function=shutil.copyfile)) == found


@pytest.mark.parametrize("place", [-1, -100_000, -200_000])
@pytest.mark.parametrize("cached_from", [0, 1 << 30])
def test_one_byte_of_the_weights_is_another_model(
    folder: Path, place: int, cached_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "CACHED_FROM", cached_from)
    before = space_of(folder)
    flip(folder / "model.safetensors", place)
    assert model_part(space_of(folder)) != model_part(before)


def rewrite(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        rewrite("1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True),
        rewrite("config_sentence_transformers.json", prompts={"query": "seek: ", "document": "text: "}),
        rewrite("config.json", layer_norm_eps=1e-5),
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " "),
    ],
    ids=["pooling", "prompts", "config", "tokenizer"],
)
def test_pooling_prompts_configuration_and_tokenizer_are_part_of_the_model(
    folder: Path, change: Callable[[Path], object]
) -> None:
    before = space_of(folder)
    change(folder)
    assert model_part(space_of(folder)) != model_part(before)


def test_a_readme_and_what_concerns_only_speed_change_nothing(folder: Path) -> None:
    before = space_of(folder)
    (folder / "README.md").write_text("a model")
    (folder / "training_args.bin").write_bytes(b"of the training")
    assert space_of(folder, max_model_len=32, gpu_memory_utilization=0.2) == before


def test_settings_that_change_the_model_change_the_space(folder: Path) -> None:
    found = [space_of(folder), space_of(folder, hf_overrides={"hidden_act": "relu"})]
    assert len({model_part(space) for space in found}) == 2


def test_the_precision_is_a_word_of_its_own(folder: Path) -> None:
    plain = space_of(folder)
    spaces = [
        space_of(folder, "bfloat16"),
        space_of(folder, "float16"),
        space_of(folder, "float16", quantization="fp8"),
    ]
    assert [space.rpartition("-")[2] for space in spaces] == ["16bit", "16bit", "fp8"]
    assert {model_part(space) for space in spaces} == {model_part(plain)}
    rewrite("config.json", quantization_config={"quant_method": "gptq"})(folder)
    assert space_of(folder, "float16").endswith("-gptq")


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    really = contents._read
    monkeypatch.setattr(contents, "_read", lambda file: read.append(file) or really(file))
    monkeypatch.setattr(contents, "CACHED_FROM", 10)
    file, cache = tmp_path / "weights", tmp_path / "cache"
    cache.mkdir()
    file.write_bytes(b"a model's weights")
    first = digest_of(file, cache)
    assert digest_of(file, cache) == first
    assert len(read) == 1
    [kept] = cache.iterdir()
    kept.write_text(first[:10])
    # As a full disk leaves it.
    assert digest_of(file, cache) == first
    assert kept.read_text() == first
    assert digest_of(file, tmp_path / "no such folder") == first


def test_another_space_is_refused_and_the_error_names_the_own() -> None:
    check_space(None, "aa-float32")
    check_space("aa-float32", "aa-float32")
    for wrong in ("bb-float32", "aa-16bit", ""):
        with pytest.raises(InvalidArgument, match="embedding_space: the vectors here are of the space aa-float32"):
            check_space(wrong, "aa-float32")
