"""Cutting a long text never changes an id. Texts for a tokenizer of an unknown kind are never cut."""

import functools
import io
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tritonembed_engine.tokenizing.long_text import PLAIN_CATEGORIES, SafeCuts
from tritonembed_perf.families import vocabularies as generated
from tritonembed_perf.models import BERT_TOKENIZER

PLAIN = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in PLAIN_CATEGORIES]


def bert() -> Tokenizer:
    return Tokenizer.from_file(str(BERT_TOKENIZER))


def roberta() -> Tokenizer:
    return generated.roberta_tokenizer(1000, 0)


def prefixed_roberta() -> Tokenizer:
    tokenizer = roberta()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def modernbert() -> Tokenizer:
    return generated.modernbert_tokenizer(1000, 0)


def qwen3() -> Tokenizer:
    return generated.qwen3_tokenizer(1000, 0)


def unigram() -> Tokenizer:
    return generated.xlm_roberta_tokenizer(1000, 0)


def xlm_roberta() -> Tokenizer:
    """Has the character map that sentencepiece builds into XLM-R, and the normalizers that conversion adds."""
    tokenizer = unigram()
    runs = normalizers.Replace(Regex(" {2,}"), "▁")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(character_map()), normalizers.Strip(left=False, right=True), runs]
    )
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    return tokenizer


@functools.cache
def character_map() -> bytes:
    """sentencepiece's nmt_nfkc, taken from a model trained here."""
    trained = io.BytesIO()
    sentences = iter(["some words to learn a few pieces from"] * 10)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=trained, vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    normalizer_spec = protobuf_field(trained.getvalue(), 3)
    return protobuf_field(normalizer_spec, 2)


def protobuf_field(message: bytes, wanted: int) -> bytes:
    """The last bytes field with this number (sentencepiece's own reader needs another protobuf release)."""
    found, at = b"", 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            if number == wanted:
                found = message[at : at + size]
            at += size
    return found


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "roberta": roberta,
    "roberta with a prefix space": prefixed_roberta,
    "modernbert": modernbert,
    "qwen3": qwen3,
    "unigram": unigram,
    "xlm-roberta": xlm_roberta,
    "metaspace always": functools.partial(metaspace, "always"),
    "metaspace first": functools.partial(metaspace, "first"),
    "metaspace never": functools.partial(metaspace, "never"),
}


@functools.cache
def known(kind: str) -> tuple[Tokenizer, SafeCuts]:
    tokenizer = KINDS[kind]()
    cuts = SafeCuts(tokenizer)
    assert cuts.possible
    return tokenizer, cuts


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# Joints at which a careless cut would be wrong, between arbitrary pieces.
SPACES = [" ", "  ", "\n", " \n", "\t", "\u00a0", "\u3000", "\u200d", "▁", " ▁", "▁ "]
NEIGHBOURS = ["'s ", " 're ", "'S T'", "1 2", "１ ２", "a b", "Σ Σ", "ŉ ŉ", "ﬁ x", "é e\u0301", "x \u0301", "\u0600x y"]
TOKENS = ["<mask>", " <mask> ", "[SEP] ", "... ", ". A "]
JOINTS = st.sampled_from([*SPACES, *NEIGHBOURS, *TOKENS])
PIECES = st.one_of(
    st.text(max_size=6),
    st.text(alphabet="abcXYZ019 .'éΣж１中\u0301\u0600\u0e33", max_size=12),
    st.sampled_from(["word", "Wort", "слово", "λέξη", "12345", "人人", "नमस्ते", "👩‍👧", "don't"]),
)
TEXTS = st.lists(st.one_of(PIECES, JOINTS), max_size=16).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(text=TEXTS, at_least=st.integers(0, 40))
def test_ids_on_both_sides_of_a_cut_are_those_of_the_whole(kind: str, text: str, at_least: int) -> None:
    tokenizer, cuts = known(kind)
    whole = ids(tokenizer, text)
    prefix, suffix = cuts.prefix(text, at_least), cuts.suffix(text, at_least)
    assert text.startswith(prefix)
    assert text.endswith(suffix)
    assert min(len(prefix), len(suffix)) >= min(at_least, len(text))
    assert ids(tokenizer, prefix) + ids(tokenizer, text[len(prefix) :]) == whole
    assert ids(tokenizer, text[: len(text) - len(suffix)]) + ids(tokenizer, suffix) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_no_letter_or_digit_of_unicode_makes_a_cut_wrong(kind: str) -> None:
    tokenizer, cuts = known(kind)
    cut = [c for c in PLAIN if cuts.prefix(f"a{c} {c}b", 0) == f"a{c}"]
    assert len(cut) > len(PLAIN) / 2

    def all_ids(pattern: str) -> list[list[int]]:
        texts = [pattern.replace("?", c) for c in cut]
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    parts = zip(all_ids("a?"), all_ids(" ?b"), strict=True)
    assert all_ids("a? ?b") == [left + right for left, right in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_prose_is_cut_at_the_next_word(kind: str) -> None:
    _, cuts = known(kind)
    prose = "Some words, some numbers: 12 of them. " * 1000
    assert len(cuts.prefix(prose, 1000)) < 1030
    assert len(cuts.suffix(prose, 1000)) < 1030


def with_normalizer(normalizer: Any) -> Tokenizer:
    tokenizer = roberta()
    tokenizer.normalizer = normalizer
    return tokenizer


def with_pre_tokenizer(pre_tokenizer: Any, tokenizer: Tokenizer | None = None) -> Tokenizer:
    tokenizer = tokenizer or roberta()
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def with_added(*tokens: str | AddedToken) -> Tokenizer:
    tokenizer = bert()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def with_dropout() -> Tokenizer:
    tokenizer = roberta()
    tokenizer.model.dropout = 0.1
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(use_regex=False)
UNKNOWN: dict[str, Callable[[], Tokenizer]] = {
    "no pre-tokenizer": lambda: Tokenizer(models.BPE()),
    "bytes without words": lambda: with_pre_tokenizer(BYTES),
    "another pattern": lambda: with_pre_tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), BYTES])
    ),
    "a pattern whose spaces are removed with what follows": lambda: with_pre_tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(generated.QWEN2_REGEX), "merged_with_next"), BYTES])
    ),
    "pieces over several words": lambda: with_pre_tokenizer(pre_tokenizers.Metaspace(split=False), unigram()),
    "digits first": lambda: with_pre_tokenizer(pre_tokenizers.Digits()),
    "a beginning of its own": lambda: with_normalizer(normalizers.Prepend("▁")),
    "a stripped beginning": lambda: with_normalizer(normalizers.Strip(left=True)),
    "letters replaced": lambda: with_normalizer(normalizers.Replace("ab", "c d")),
    "spaces replaced": lambda: with_normalizer(normalizers.Replace(Regex(r"\w \w"), "x")),
    "an added token of two words": lambda: with_added("New York"),
    "an added token that begins with a space": lambda: with_added(AddedToken(" x", normalized=False)),
    "an added token that becomes two words": lambda: with_added(AddedToken("a\tb", normalized=True)),
    "an added word that eats the space before it": lambda: with_added(AddedToken("word", lstrip=True)),
    "an added word that eats the space after it": lambda: with_added(AddedToken("word", rstrip=True)),
    "random pieces": with_dropout,
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_texts_for_a_tokenizer_of_an_unknown_kind_are_never_cut(kind: str) -> None:
    cuts = SafeCuts(UNKNOWN[kind]())
    prose = "Some words in New York and a word more. " * 100
    assert not cuts.possible
    assert cuts.prefix(prose, 10) == prose
    assert cuts.suffix(prose, 10) == prose
