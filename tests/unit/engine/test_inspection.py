"""Tokens of texts, and texts of ids, against transformers' own tokenizer."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.tokenizing.inspection import InspectParameters, parse_inspect_parameters
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

TEXTS = ["Hello world", "naïve café 中文 😀", "", " two  spaces ", "word " * 300]
PLAIN = InspectParameters()


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta", "qwen3"])
def both(request, shelf):
    """Our inspector and transformers' tokenizer of a model."""
    folder = shelf(request.param)
    return TextTokenizer(read_model_files(str(folder))).inspector, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_transformers_and_nothing_is_cut(both, special):
    inspector, tokenizer = both
    found = inspector.tokens([text.encode() for text in TEXTS], InspectParameters(add_special_tokens=special))
    for text, element in zip(TEXTS, found, strict=True):
        rows = json.loads(element)
        expected = tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        assert [row["id"] for row in rows] == expected.input_ids
        assert [row["special"] for row in rows] == [bool(one) for one in expected.special_tokens_mask]
        for row, (start, stop) in zip(rows, expected.offset_mapping, strict=True):
            if row["special"]:
                assert (row["start"], row["stop"]) == (None, None)
                assert row["text"] == tokenizer.convert_ids_to_tokens(row["id"])
            else:
                assert (row["start"], row["stop"], row["text"]) == (start, stop, text[start:stop])


@pytest.mark.parametrize("skip", [True, False])
def test_texts_of_ids_are_transformers(both, skip):
    inspector, tokenizer = both
    sequences = tokenizer(TEXTS).input_ids
    elements = [np.array(ids, "<i4").tobytes() for ids in sequences]
    found = inspector.decoded(elements, InspectParameters(skip_special_tokens=skip))
    expected = [
        tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for ids in sequences
    ]
    assert [text.decode() for text in found] == expected


def test_a_prompt_is_part_of_the_text(shelf):
    inspector = TextTokenizer(read_model_files(str(shelf("bert")))).inspector
    [rows] = inspector.tokens([b"cats"], InspectParameters(prompt_name="query", add_special_tokens=False))
    assert [row["text"] for row in json.loads(rows)] == ["find", ":", "cats"]
    with pytest.raises(InvalidArgument, match="prompt_name: is not one of the model's"):
        inspector.tokens([b"cats"], InspectParameters(prompt_name="other"))


def test_embedding_goes_on_as_before(shelf):
    tokenizer = TextTokenizer(read_model_files(str(shelf("bert"))))
    from tritonembed_engine.parameters import DEFAULTS

    before = tokenizer.encode_requests([([b"word " * 300], DEFAULTS)])
    tokenizer.inspector.tokens([b"word " * 300], PLAIN)
    assert tokenizer.encode_requests([([b"word " * 300], DEFAULTS)]) == before


@pytest.mark.parametrize(
    ("texts", "word"), [([b"\xff"], "sentence 0 is not UTF-8"), ([b"a" * 600_000] * 2, "more than 1048576 bytes")]
)
def test_bad_texts_are_refused(shelf, texts, word):
    inspector = TextTokenizer(read_model_files(str(shelf("bert")))).inspector
    with pytest.raises(InvalidArgument, match=word):
        inspector.tokens(texts, PLAIN)


@pytest.mark.parametrize(
    ("element", "word"),
    [
        (b"abc", "not a list of ids"),
        (np.array([-1], "<i4").tobytes(), "outside the vocabulary"),
        (b"\xff\xff\xff\x7f", "outside"),
    ],
)
def test_bad_ids_are_refused(shelf, element, word):
    inspector = TextTokenizer(read_model_files(str(shelf("bert")))).inspector
    with pytest.raises(InvalidArgument, match=word):
        inspector.decoded([element], PLAIN)


def test_parameters_are_checked():
    assert parse_inspect_parameters("") == PLAIN
    given = '{"add_special_tokens": false, "prompt_name": "query", "triton_enable_empty_final_response": false}'
    assert parse_inspect_parameters(given) == InspectParameters(False, prompt_name="query")
    for raw, word in (
        ('{"truncate": "END"}', "there is an unknown one"),
        ('{"add_special_tokens": 1}', "add_special_tokens: must be a bool"),
        ('{"prompt_name": true}', "prompt_name: must be a string"),
    ):
        with pytest.raises(InvalidArgument, match=word):
            parse_inspect_parameters(raw)
