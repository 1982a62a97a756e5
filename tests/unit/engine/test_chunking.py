"""Chunks of long texts: they fit the model, cover the text, and have the ids of their part of the text alone."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import ModelShelf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from tritonembed_engine.chunks import Chunk, pack, unpack
from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.tokenizing.chunking import Chunker, ChunkSize
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_protocol.limits import MAX_REQUEST_CHUNKS, MAX_TEXT_CHUNKS

KINDS = ["bert", "roberta", "xlm-roberta", "modernbert", "qwen3"]
LIMIT = 64
SENTENCES = " ".join(f"Sentence number {n} has {n} words, more or less." for n in range(60))
TEXTS = {
    "sentences": SENTENCES,
    "words": "word and " * 300,
    "paragraphs": "\n\n".join(f"Heading {n}\n\nA paragraph without an end" for n in range(40)),
    "no spaces": "x" * 900,
    "chinese": "今天天气很好。我们去公园散步吧！" * 40,
    "emoji": "👩‍👩‍👧‍👦🇩🇪👍🏽" * 60,
    "spaces": "a" + " " * 3000 + "b. " + "c\n" * 300,
    "mixed": "naïve Ünïcödé 中文 e\u0301 [SEP] </s> <|endoftext|> 3.14, Dr. Who! " * 20,
}


@pytest.fixture(scope="session")
def tokenizers(shelf: ModelShelf) -> dict[str, TextTokenizer]:
    return {kind: TextTokenizer(read_model_files(str(shelf(kind)))) for kind in KINDS}


def chunks_of(tokenizer: TextTokenizer, text: str, **asked: object) -> list[tuple[list[int], int, int]]:
    """Ids, start and end of each chunk."""
    parameters = EmbedParameters(truncate="CHUNK", **asked)  # type: ignore[arg-type]
    answer = tokenizer.encode_requests([([text.encode()], parameters)])[0]
    assert not isinstance(answer, InvalidArgument), answer
    ids, chunks = unpack(answer)
    offsets = chunks.offsets.tolist()
    found = [np.frombuffer(one, "<i4").tolist() for one in ids]
    return [(one, start, end) for one, (start, end) in zip(found, offsets, strict=True)]


def check(kind: str, model: Path, tokenizer: TextTokenizer, text: str, tokens: int, overlap: int, prompt: str) -> None:
    """transformers' tokenizer gives each chunk's ids; the chunks leave out nothing but white space."""
    own = AutoTokenizer.from_pretrained(model)
    chunks = chunks_of(tokenizer, text, chunk_tokens=tokens, chunk_overlap=overlap, prompt=prompt)
    # A chunk leaves out white space at its ends, which can be what did not fit.
    assert len(own(prompt + text.strip()).input_ids) <= tokens or len(chunks) > 1
    covered = 0
    for ids, start, end in chunks:
        assert ids == own(prompt + text[start:end]).input_ids, kind
        assert 0 < len(ids) <= tokens
        assert end > covered or len(chunks) == 1
        assert not text[covered:start].strip()
        if not overlap:
            assert start >= covered
        covered = end
    assert not text[covered:].strip()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_fit_and_cover_the_text(
    kind: str, name: str, shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    for tokens, overlap, prompt in ((LIMIT, 0, ""), (32, 8, "find: ")):
        check(kind, shelf(kind), tokenizers[kind], TEXTS[name], tokens, overlap, prompt)


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(st.sampled_from("ab cd. E!\n中。é\u0301😀"), max_size=400),
    tokens=st.integers(16, LIMIT),
    overlap=st.integers(0, 4),
    kind=st.sampled_from(["bert", "qwen3"]),
)
def test_chunks_of_any_text_fit_and_cover_it(
    text: str, tokens: int, overlap: int, kind: str, shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    check(kind, shelf(kind), tokenizers[kind], text, tokens, overlap, "")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_end_with_sentences_and_hold_as_many_as_fit(kind: str, tokenizers: dict[str, TextTokenizer]) -> None:
    chunks = chunks_of(tokenizers[kind], SENTENCES)
    sentences = re.findall(r"Sentence[^.]*\.", SENTENCES)
    at = 0
    for ids, start, end in chunks:
        part = SENTENCES[start:end]
        count = part.count(".")
        assert part == " ".join(sentences[at : at + count])
        at += count
        if at < len(sentences):
            longer = chunks_of(tokenizers[kind], f"{part} {sentences[at]}")
            # One token more or less can come from the part's own borders.
            assert len(longer) > 1 or len(longer[0][0]) >= LIMIT - 1, (part, len(ids))
    assert at == len(sentences)


def test_a_long_sentence_is_cut_between_words(tokenizers: dict[str, TextTokenizer]) -> None:
    text = " ".join(f"extraordinarily{n}" for n in range(100))
    parts = [text[start:end] for _, start, end in chunks_of(tokenizers["bert"], text)]
    assert " ".join(parts) == text
    assert len(parts) > 3


def test_overlapping_chunks_begin_at_words_before_the_last_end(tokenizers: dict[str, TextTokenizer]) -> None:
    text = " ".join(["word"] * 300)
    chunks = chunks_of(tokenizers["bert"], text, chunk_tokens=12, chunk_overlap=4)
    for (_, _, before), (_, start, _) in itertools.pairwise(chunks):
        assert text[start - 1] == " "
        assert text[start:before].split() == ["word"] * 4


def parts_of(tokenizer: Tokenizer, text: str, prompt: str, tokens: int, overlap: int = 0) -> list[str]:
    """The chunks of a text under a tokenizer without special tokens."""
    size = ChunkSize(tokens, overlap)
    return [text[start:end] for _, start, end in Chunker(tokenizer, 0).chunks(text, prompt, size, 0)]


def test_a_part_that_has_more_tokens_after_its_prompt_is_shortened() -> None:
    words = {word: number for number, word in enumerate(["[UNK]", "un", "able", "una", "##b", "##le", "word"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # "un" and "able" are a token each; "unable" is three.
    assert parts_of(tokenizer, "able word word word word", "un", 4) == ["able word", "word word word"]


def test_an_overlap_gives_way_to_a_character_of_many_tokens() -> None:
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # A letter is one token, the emoji four.
    assert parts_of(tokenizer, "abc\U0001f600def", "", 5, 2) == ["abc", "\U0001f600d", "def"]
    assert parts_of(tokenizer, "abc \U0001f600", "", 5, 2) == ["abc", "\U0001f600"]
    with pytest.raises(InvalidArgument, match=r"^text: sentence 0 has a character of more tokens than there is room"):
        parts_of(tokenizer, "abc\U0001f600def", "", 3)


def test_short_texts_stay_whole_whatever_else_the_request_holds(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    texts = ["a dog", "", SENTENCES, "x"]
    asked = EmbedParameters(truncate="CHUNK", input_type="query")
    elements = tokenizer.encode_requests([([text.encode() for text in texts], asked)])[0]
    assert not isinstance(elements, InvalidArgument)
    plain = tokenizer.encode_requests([([b"a dog", b"", b"x"], EmbedParameters(input_type="query"))])[0]
    ids, chunks = unpack(elements)
    assert [ids[0], ids[1], ids[-1]] == plain
    assert chunks.counts.tolist()[:2] == [1, 1]
    assert chunks.counts[2] > 10
    assert chunks.offsets[[0, 1, -1]].tolist() == [[0, 5], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"chunk_tokens": 65}, r"chunk_tokens: 65 is over the model's maximum of 64"),
        ({"chunk_tokens": 2}, r"truncate: a chunk of 2 tokens has no room for text beside the prompt"),
        ({"prompt": "very " * 70}, r"truncate: a chunk of 64 tokens has no room for text beside the prompt"),
        ({"chunk_overlap": 32}, r"chunk_overlap: 32 is over the half of the 62 tokens that a chunk has for text"),
    ],
)
def test_a_size_that_cannot_be_is_refused(
    asked: dict[str, object], message: str, tokenizers: dict[str, TextTokenizer]
) -> None:
    parameters = EmbedParameters(truncate="CHUNK", **asked)  # type: ignore[arg-type]
    answer = tokenizers["bert"].encode_requests([([SENTENCES.encode()], parameters)])[0]
    assert str(answer) == message


def test_too_many_chunks_are_refused_without_reading_the_whole_text(tokenizers: dict[str, TextTokenizer]) -> None:
    asked = EmbedParameters(truncate="CHUNK", chunk_tokens=3)
    jobs = [([b"a", b"word " * 3_000_000], asked), ([b"word " * 1000] * 5, asked), ([b"word " * 1000] * 4, asked)]
    one, many, right = tokenizers["bert"].encode_requests(jobs)
    assert str(one) == f"text: sentence 1 has more than {MAX_TEXT_CHUNKS} chunks"
    assert str(many) == f"text: the request has more than {MAX_REQUEST_CHUNKS} chunks; send fewer texts at once"
    assert not isinstance(right, InvalidArgument)
    assert unpack(right)[1].counts.tolist() == [1000] * 4


def element(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


def test_chunks_survive_the_way_to_the_embedder() -> None:
    first = [Chunk(element(5, 6), 0, 4), Chunk(element(7), 5, 9)]
    ids, chunks = unpack([pack(first), element(8, 9)])
    assert ids == [element(5, 6), element(7), element(8, 9)]
    assert chunks.counts.tolist() == [2, 1]
    assert chunks.offsets.tolist() == [[0, 4], [5, 9], [-1, -1]]
    assert chunks.sums(np.array([2, 1, 2], np.int32)).tolist() == [3, 2]
    spans = [np.frombuffer(span, "<i4").reshape(-1, 3).tolist() for span in chunks.spans(np.array([2, 1, 2], np.int32))]
    assert spans == [[[0, 4, 2], [5, 9, 1]], [[-1, -1, 2]]]
    assert chunks.split([b"a", b"b", b"c"]) == [b"ab", b"c"]


@pytest.mark.parametrize(
    "wrong",
    [
        element(-1),
        element(-1, 0),
        element(-1, -5, 1, 0, 1, 7),
        element(-1, 1, 1, 0, 1),
        element(-1, 1, 0, 0, 1),
        element(-1, 2, 1, 0, 1, 7),
        element(-1, 2, 3, 0, 1, -1, 0, 1, 7, 8),
        element(-1, 1, 1, 0, 1, 7) + b"\0",
        element(-1, 2**31 - 1, 1, 0, 1, 7),
    ],
)
def test_a_header_that_does_not_fit_is_refused(wrong: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^token_ids: sentence 1 has a header of chunks that does not fit it$"):
        unpack([element(1), wrong])


def test_more_chunks_than_a_request_may_have_are_refused() -> None:
    many = pack([Chunk(element(1), 0, 1)] * (MAX_REQUEST_CHUNKS // 2))
    assert len(unpack([many, many])[0]) == MAX_REQUEST_CHUNKS
    with pytest.raises(InvalidArgument, match=r"^token_ids: the request has more than 4096 chunks"):
        unpack([many, many, element(1)])


@pytest.mark.parametrize("normalize", [True, False])
def test_the_vector_of_a_text_is_the_mean_weighted_by_tokens(normalize: bool) -> None:
    rng = np.random.default_rng(5)
    counts, dimensions = [3, 1, 2], 8
    elements = [pack([Chunk(element(*range(n + 1)), 0, 1) for n in range(count)]) for count in counts]
    ids, chunks = unpack(elements)
    vectors = rng.standard_normal((6, dimensions)).astype(np.float32)
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tokens = np.array([len(one) // 4 for one in ids], np.int32)
    found = chunks.means(vectors, tokens, normalize)
    for row, (start, end) in enumerate(((0, 3), (3, 4), (4, 6))):
        mean = np.average(vectors[start:end].astype(np.float64), axis=0, weights=tokens[start:end])
        expected = mean / np.linalg.norm(mean) if normalize else mean
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def test_a_request_of_whole_texts_keeps_its_bits() -> None:
    vectors = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    _, chunks = unpack([element(1), element(2, 3)])
    assert chunks.means(vectors, np.array([1, 2], np.int32), True) is vectors
