"""The template of an instruction, from the model's own prompts or its name."""

import json
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.instructions import fill, instruction_template
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

WEB = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3 = "Instruct: {instruction}\nQuery:"
E5 = "Instruct: {instruction}\nQuery: "
GRIT = "<|user|>\n{instruction}\n<|embed|>\n"


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": f"Instruct: {WEB}\nQuery:", "document": ""}, QWEN3),
        ({"query": f"Instruct: {WEB}\nQuery: "}, E5),
        ({"web": f"Instruct: {WEB}\nQuery: ", "sts": "Instruct: Retrieve similar text.\nQuery: "}, E5),
        ({"a": f"Instruct: {WEB} \n Query: "}, "Instruct: {instruction} \n Query: "),
        ({"a": "Instruct: two\nlines\nQuery: "}, E5),
        ({"a": f"<|user|>\n{WEB}\n<|embed|>\n"}, GRIT),
        (
            {"query": "task: search result | query: ", "document": "title: none | text: "},
            "task: {instruction} | query: ",
        ),
        ({"a": f"Instruct: {WEB}\nQuery:", "query": f"Instruct: {WEB}\nQuery: "}, E5),
        ({"a": f"Instruct: {WEB}\nQuery:", "b": f"Instruct: {WEB}\nQuery: "}, None),
        ({"query": "query: ", "document": "passage: "}, None),
        ({"query": "Instruct: \nQuery: "}, None),
        ({"query": f"Instruct: {WEB}\nQuery: and more"}, None),
        ({}, None),
    ],
)
def test_a_prompt_shows_the_template(prompts: dict[str, str], expected: str | None) -> None:
    assert instruction_template("some-model", prompts) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multilingual-e5-large-instruct", E5),
        ("e5-mistral-7b-instruct", E5),
        ("gte-Qwen2-7B-instruct", E5),
        ("Qwen3-Embedding-0.6B", QWEN3),
        ("GritLM-7B", GRIT),
        ("multilingual-e5-large", None),
        ("all-MiniLM-L6-v2", None),
    ],
)
def test_a_model_without_such_a_prompt_is_known_by_its_name(name: str, expected: str | None) -> None:
    assert instruction_template(name, {"query": "q: "}) == expected
    assert instruction_template(name, {"query": f"Instruct:{WEB}\nQuery:"}) == "Instruct:{instruction}\nQuery:"


def test_an_instruction_may_hold_anything() -> None:
    assert fill(E5, "find {instruction} {0}\n%s") == "Instruct: find {instruction} {0}\n%s\nQuery: "


def with_prompt(model: Path, folder: Path) -> Path:
    """A copy with a prompt that has an instruction and is left out of the pooling."""
    shutil.copytree(model, folder)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": f"Instruct: {WEB}\nQuery:"}})
    )
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "include_prompt": False}))
    return folder


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_text_with_an_instruction_is_that_of_sentence_transformers(
    kind: str, shelf: ModelShelf, tmp_path: Path
) -> None:
    folder = with_prompt(shelf(kind), tmp_path / "model")
    files = read_model_files(str(folder))
    for instruction in (WEB, "find cats", "naïve 😀"):
        asked = EmbedParameters(input_type="query", instruction=instruction)
        prompt = f"Instruct: {instruction}\nQuery:"
        answer = TextTokenizer(files).encode_requests([([b"a dog"], asked)])[0]
        assert answer == TextTokenizer(files).encode_requests([([f"{prompt}a dog".encode()], EmbedParameters())])[0]
        transformer = SentenceTransformer(str(folder), device="cpu")[0]
        assert PromptLengths(files).skip(asked) == transformer._get_prompt_length(prompt, task="query") > 1
    same = EmbedParameters(instruction=WEB)
    assert PromptLengths(files).skip(same) == PromptLengths(files).skip(EmbedParameters(prompt_name="query"))


def test_a_model_without_a_template_refuses_an_instruction(shelf: ModelShelf) -> None:
    files = read_model_files(str(shelf("bert")))
    asked = EmbedParameters(instruction="secret")
    good, bad = TextTokenizer(files).encode_requests([([b"dog"], EmbedParameters()), ([b"dog"], asked)])
    assert not isinstance(good, InvalidArgument)
    assert str(bad) == "instruction: the model has no instruction template; send the whole as prompt"


def test_a_setting_gives_the_template(shelf: ModelShelf) -> None:
    files = read_model_files(str(shelf("bert")), template="Represent {instruction}: ")
    assert files.prompt_for("query", instruction="cats") == "Represent cats: "
