"""tokenizer.json counts, whatever the class in tokenizer_config.json would build."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models import ModelShelf
from tests.unit.engine.test_tokenizing import ODD
from tokenizers import AddedToken, Tokenizer

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.reference.making import _transformers_ids
from tritonembed_engine.tokenizing.file_pipeline import restore_file_pipeline
from tritonembed_engine.tokenizing.loading import load_tokenizer

Change = Callable[[dict[str, Any]], Any]
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
TEXTS = [text for text in [*ODD, "It's 2024: Ünï", "two  words"] if "<" not in text and "[" not in text]


def in_front(part: str, added: dict[str, Any]) -> Change:
    """Put a normalizer or a pre-tokenizer before the model's own."""
    lists = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}

    def change(file: dict[str, Any]) -> None:
        own = [file[part]] if file[part] else []
        file[part] = {"type": "Sequence", lists[part]: [added, *own]}

    return change


CHANGES: dict[str, Change] = {
    "replaces": in_front("normalizer", {"type": "Replace", "pattern": {"String": "'"}, "content": " "}),
    "lowercases": in_front("normalizer", {"type": "Lowercase"}),
    "strips accents": lambda file: [in_front("normalizer", {"type": one})(file) for one in ("StripAccents", "NFD")],
    "splits digits": in_front("pre_tokenizer", {"type": "Digits", "individual_digits": True}),
    "splits at blanks": in_front("pre_tokenizer", {"type": "WhitespaceSplit"}),
    "adds no ends": lambda file: file.update(post_processor=None),
    "has a word": lambda file: file["added_tokens"].append(
        {"id": 1 + max(token["id"] for token in file["added_tokens"] + [{"id": len(file["model"]["vocab"]) - 1}])}
        | {"content": "Don't", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": False}
    ),
}


def changed(source: Path, folder: Path, change: Change) -> Path:
    shutil.copytree(source, folder)
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(file)
    (folder / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    return folder


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "qwen3"])
def test_own_rules_of_a_file_count(shelf: ModelShelf, tmp_path: Path, kind: str, change: str) -> None:
    folder = changed(shelf(kind), tmp_path / "model", CHANGES[change])
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.no_truncation()
    alone.no_padding()
    files = read_model_files(str(folder))
    served, reference = load_tokenizer(files), _transformers_ids(files)
    for text in TEXTS:
        expected = alone.encode(text).ids
        assert served.encode(text).ids == expected, text
        if len(expected) <= 64:
            assert reference(text, 64) == b"".join(number.to_bytes(4, "little") for number in expected), text


@pytest.mark.parametrize("lower", [True, False])
def test_a_class_still_sets_the_case(shelf: ModelShelf, tmp_path: Path, lower: bool) -> None:
    """`do_lower_case` is a setting of BertTokenizer, which counts before tokenizer.json's in all of transformers."""
    folder = changed(shelf("bert"), tmp_path / "model", lambda file: file["normalizer"].update(lowercase=not lower))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = load_tokenizer(read_model_files(str(folder)))
    assert (tokenizer.encode("HELLO").ids == tokenizer.encode("hello").ids) == lower


def test_wordpiece_under_another_class(shelf: ModelShelf, tmp_path: Path) -> None:
    """As in almanach/camembertv2-base. RobertaTokenizer would split words into letters."""
    folder = tmp_path / "model"
    shutil.copytree(shelf("bert"), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "RobertaTokenizer", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = load_tokenizer(read_model_files(str(folder)))
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.no_truncation()
    for text in TEXTS:
        assert tokenizer.encode(text).ids == alone.encode(text).ids


def test_tokens_that_only_the_config_lists_are_added(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(shelf("bert"), folder)
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.no_truncation()
    alone.add_tokens([AddedToken(f"<word {number}>", normalized=False) for number in range(3000)])
    added = {
        str(number): {name: getattr(token, name) for name in FLAGS}
        for number, token in alone.get_added_tokens_decoder().items()
    }
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = load_tokenizer(read_model_files(str(folder)))
    text = "a <word 7> and <word 2999>"
    assert tokenizer.encode(text).ids == alone.encode(text).ids


def test_a_token_with_two_ids_is_refused(shelf: ModelShelf) -> None:
    """A class that gave a token another id than tokenizer.json has would read the wrong row of the model's table."""
    larger = json.loads((shelf("bert") / "tokenizer.json").read_text("utf-8"))
    larger["model"]["vocab"]["one word more"] = len(larger["model"]["vocab"])

    class BertTokenizer:
        backend_tokenizer = Tokenizer.from_str(json.dumps(larger))

    BertTokenizer.backend_tokenizer.add_tokens(["an added token"])
    with pytest.raises(ValueError, match="has another id"):
        restore_file_pipeline(BertTokenizer(), shelf("bert"))
