"""Errors of a model are reported before anything starts."""

import shutil
from pathlib import Path

import pytest
from tests.models import ModelShelf

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.repository import check_model


@pytest.mark.parametrize("longest", [None, -1, 1, 64])
def test_a_length_within_the_models_maximum_is_accepted(shelf: ModelShelf, longest: int | None) -> None:
    check_model(str(shelf("bert")), None, longest)


def test_a_length_beyond_the_models_maximum_is_refused_with_both_numbers(shelf: ModelShelf) -> None:
    with pytest.raises(StartError, match=r"^--max-model-len: 65 tokens, but bert takes at most 64$"):
        check_model(str(shelf("bert")), None, 65)


def test_half_a_tokenizer_is_refused_without_its_path(shelf: ModelShelf, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shelf("bert"), broken)
    whole = (broken / "tokenizer.json").read_text()
    (broken / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(StartError, match=r"^--model: the model's tokenizer.json can't be read \(JSONDecodeError\)$"):
        check_model(str(broken), None)
