"""The number of a sentence's tokens that belong to its prompt, as sentence-transformers counts them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import DEFAULTS, EmbedParameters
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths

PROMPTS = ["find: ", "a", " ", "ends in [SEP]", "ends in </s> <|endoftext|>", "very " * 100, "\u00e9\U0001f600: "]


def folder_of(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy that leaves prompts out of the pooling."""
    shutil.copytree(model, folder)
    for file, changes in (
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("sentence_bert_config.json", settings),
        ("config_sentence_transformers.json", {"prompts": {"query": "find: "}}),
    ):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"query_length": 4}, {"max_seq_length": 6}, {"processor_kwargs": {"truncation_side": "left"}}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen3"])
def test_prompts_are_as_long_as_in_sentence_transformers(
    kind: str, settings: dict[str, Any], shelf: ModelShelf, tmp_path: Path
) -> None:
    folder = folder_of(shelf(kind), tmp_path / "model", **settings)
    transformer: Any = SentenceTransformer(str(folder), device="cpu")[0]
    ours = PromptLengths(read_model_files(str(folder)))
    for prompt in PROMPTS:
        expected = transformer._get_prompt_length(prompt, task="query")
        assert ours.skip(EmbedParameters(input_type="query", prompt=prompt)) == expected
        assert ours.skip(EmbedParameters(prompt=prompt)) == expected


def test_the_prepended_prompt_counts(shelf: ModelShelf, tmp_path: Path) -> None:
    ours = PromptLengths(read_model_files(str(folder_of(shelf("bert"), tmp_path / "model"))))
    named = ours.skip(EmbedParameters(input_type="query"))
    assert named == ours.skip(EmbedParameters(prompt_name="query")) == ours.skip(EmbedParameters(prompt="find: ")) > 1
    assert ours.skip(DEFAULTS) == ours.skip(EmbedParameters(input_type="query", prompt="")) == 0
    with pytest.raises(InvalidArgument, match=r"^prompt_name: "):
        ours.skip(EmbedParameters(prompt_name="gone"))


def test_a_prompt_of_a_megabyte_is_not_kept_in_memory(shelf: ModelShelf, tmp_path: Path) -> None:
    ours = PromptLengths(read_model_files(str(folder_of(shelf("bert"), tmp_path / "model"))))
    assert ours.skip(EmbedParameters(prompt="very " * 200_000)) == 63
    assert ours._count.cache_info().currsize == 0


def test_nothing_is_left_out_if_prompts_are_pooled(shelf: ModelShelf) -> None:
    assert PromptLengths(read_model_files(str(shelf("bert")))).skip(EmbedParameters(input_type="query")) == 0
