"""Texts of a megabyte have the ids of the model's own tokenizer, although they are not tokenized whole."""

import pytest
from tests.models import ModelShelf
from tests.unit.engine.test_tokenizing import LONG_TEXTS, check_long_texts

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer


@pytest.mark.parametrize(("kind", "truncate"), LONG_TEXTS)
def test_ids_of_a_megabyte_are_those_of_the_models_own_tokenizer(kind: str, truncate: str, shelf: ModelShelf) -> None:
    tokenizer = TextTokenizer(read_model_files(str(shelf(kind))))
    check_long_texts(shelf(kind), tokenizer, kind, truncate, characters=1_000_000)
