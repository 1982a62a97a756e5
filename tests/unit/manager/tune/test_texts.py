"""Texts of a load have exact lengths, as counted by the tokenizer itself."""

import random

import pytest
from tests.models import ModelShelf
from tokenizers import Tokenizer

from tritonembed_manager.tune.loads import NoTextError, WordTexts, count_tokens, exact_length_texts


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "qwen3"])
def test_texts_have_exactly_the_requested_tokens_and_differ(name: str, shelf: ModelShelf) -> None:
    tokenizer = Tokenizer.from_file(str(shelf(name) / "tokenizer.json"))
    words = WordTexts(tokenizer)
    lengths = [words.shortest, 7, 50] * 5
    texts = words.of_lengths(lengths, random.Random(1))
    assert count_tokens(tokenizer, texts) == lengths
    long = [text for text, length in zip(texts, lengths, strict=True) if length == 50]
    assert len(set(long)) == 5
    assert all(word.isalpha() for text in long for word in text.split())


def test_a_length_below_one_word_is_refused(shelf: ModelShelf) -> None:
    words = WordTexts(Tokenizer.from_file(str(shelf("bert") / "tokenizer.json")))
    with pytest.raises(NoTextError, match="no text has a length of 2 tokens: a word and the special tokens have 3"):
        words.of_lengths([2], random.Random(1))


def test_a_vocabulary_without_words_is_refused() -> None:
    from tokenizers.models import WordLevel

    with pytest.raises(NoTextError, match="no whole words"):
        WordTexts(Tokenizer(WordLevel({"1": 0, "?": 1}, unk_token="?"))).of_lengths([5], random.Random(1))


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "modernbert", "qwen3"])
@pytest.mark.parametrize("length", [3, 50])
def test_texts_have_exactly_the_requested_tokens(name: str, length: int, shelf: ModelShelf) -> None:
    tokenizer = Tokenizer.from_file(str(shelf(name) / "tokenizer.json"))
    texts = exact_length_texts(tokenizer, length, 20, seed=1)
    assert len(texts) == 20
    assert {len(tokenizer.encode(text).ids) for text in texts} == {length}
    assert texts == exact_length_texts(tokenizer, length, 20, seed=1)
    assert texts != exact_length_texts(tokenizer, length, 20, seed=2)


def test_a_length_below_the_special_tokens_is_refused(shelf: ModelShelf) -> None:
    tokenizer = Tokenizer.from_file(str(shelf("bert") / "tokenizer.json"))
    with pytest.raises(NoTextError, match="no text has a length of 1 tokens"):
        exact_length_texts(tokenizer, 1, 1, seed=0)
