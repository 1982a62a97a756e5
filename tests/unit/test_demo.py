"""The source of the demo's model: the package, else the hub, else random weights. The demo's sentences."""

import hashlib
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from demo import model, run


@pytest.fixture(autouse=True)
def hub_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Makes the hub unreachable and puts random weights into a folder of the test. Returns the names requested."""
    calls = []

    def unreachable(name: str, **_: object) -> str:
        calls.append(name)
        raise OSError("Name or service not known: https://user:secret@hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(model, "RANDOM_MODEL", tmp_path / "random")
    return calls


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PACKAGE", "a_package_that_pip_could_not_install")


def package_with_weights(folder: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is found before the installed package. Returns the folder of its model."""
    (folder / model.PACKAGE / "model").mkdir(parents=True)
    (folder / model.PACKAGE / "__init__.py").write_text("raise AssertionError('the package was imported')")
    (folder / model.PACKAGE / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.syspath_prepend(str(folder))
    return folder / model.PACKAGE / "model"


def hub_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))


def test_the_package_that_set_up_installed_is_the_first_choice(hub_calls: list[str]) -> None:
    found = model.find_model()
    assert Path(found.name).parent.name == model.PACKAGE
    assert hashlib.sha256((Path(found.name) / "model.safetensors").read_bytes()).hexdigest() == model.SHA256
    assert found.description == "The model is all-MiniLM-L6-v2, from the package that make setup installed."
    assert hub_calls == []


def test_without_the_package_the_model_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = model.from_package()
    without_package(monkeypatch)
    hub_with(genuine, monkeypatch)
    found = model.find_model()
    assert found.name == str(genuine)
    assert found.description == "The model is all-MiniLM-L6-v2, from the hub."


def test_other_weights_in_the_package_are_not_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    genuine = model.from_package()
    folder = package_with_weights(tmp_path, b"other weights", monkeypatch)
    with pytest.raises(model.NoModelError, match="has another SHA-256 than the genuine one"):
        model.from_package()
    hub_with(genuine, monkeypatch)
    assert model.find_model().name == str(genuine) != str(folder)


def test_other_weights_from_the_hub_are_not_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_package(monkeypatch)
    hub_with(tmp_path, monkeypatch)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    found = model.find_model()
    assert found.name == str(tmp_path / "random")
    assert "model.safetensors of the hub has another SHA-256" in found.description


def test_without_package_and_hub_one_line_reports_random_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub_calls: list[str]
) -> None:
    without_package(monkeypatch)
    found = model.find_model()
    assert hub_calls == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert (Path(found.name) / "model.safetensors").exists()
    assert found.description == (
        "The weights are random, and similar vectors mean nothing: the package a_package_that_pip_could_not_install is "
        "not installed (make setup) and the hub does not give sentence-transformers/all-MiniLM-L6-v2 (OSError)."
    )


def test_an_unfinished_random_model_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo-model"

    def interrupted(unfinished: Path, **_: object) -> None:
        unfinished.mkdir()
        (unfinished / "config.json").touch()
        pytest.fail("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(model, "write_bert", interrupted)
        with pytest.raises(pytest.fail.Exception):
            model.random_model(folder)
    assert not folder.exists()
    assert model.random_model(folder) == folder
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo-model"]


def test_the_corpus_has_300_different_sentences() -> None:
    corpus = run.read_corpus()
    assert len(corpus) == len(set(corpus)) == 300
    assert [line for line in corpus if not re.fullmatch(r"[A-Z][^#]+\.", line)] == []


def test_the_difference_of_vectors_is_the_difference_of_their_cosines() -> None:
    left = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    assert run.largest_difference(left, left * 5) == pytest.approx(0, abs=1e-12)
    turned = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    assert run.largest_difference(left, turned) == pytest.approx(0.5**0.5)
