"""Token ids are those of the model's own tokenizer, and a bad text fails only its own request."""

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import ModelShelf
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import DEFAULTS, EmbedParameters
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.vocabularies import training_corpus
from tritonembed_perf.models import BERT_TOKENIZER

KINDS = ["bert", "roberta", "xlm-roberta", "modernbert", "qwen3"]
ODD = [
    "",
    " ",
    "\n\t\r\n",
    "a\x00b\x07c\x1bd\x7f",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️",
    "[CLS] [SEP] <s></s> <mask> <|endoftext|> [MASK]",
    "e\u0301 vs \u00e9, ﬁ, Å, ①, ½",
    "\u200b\u200d\ufeff\u2028\u00a0\u3000x",
    "\U0001f600" * 100,
    "x" * 150,
    "Don't can't I'LL we'Re 1234567 3.14 a,b;c",
    "\ufffd\ufffe\U0010ffff",
    "ΣΑΣ İSTANBUL ǅ ß ŉ",
]


def many_texts() -> list[str]:
    """1,000 texts: odd texts, sentences in twenty languages, and mixtures of everything."""
    rng = random.Random(7)
    sentences = training_corpus(7)[:200]
    texts = [*ODD, *sentences]
    while len(texts) < 1000:
        parts = rng.choices([*ODD, *sentences], k=rng.randint(1, 3))
        parts.append(chr(rng.randrange(32, 0x3000)) + chr(rng.randrange(0x10000, 0x1FAFF)))
        texts.append(rng.choice(["", " ", "  ", "\n"]).join(parts))
    return texts


@pytest.fixture(scope="session")
def tokenizers(shelf: ModelShelf) -> dict[str, TextTokenizer]:
    return {kind: TextTokenizer(read_model_files(str(shelf(kind)))) for kind in KINDS}


def encode(tokenizer: TextTokenizer, texts: list[str], parameters: EmbedParameters = DEFAULTS) -> list[list[int]]:
    answer = tokenizer.encode_requests([([text.encode() for text in texts], parameters)])[0]
    assert not isinstance(answer, InvalidArgument), answer
    return [np.frombuffer(ids, dtype="<i4").tolist() for ids in answer]


def refused(tokenizer: TextTokenizer, texts: list[bytes], parameters: EmbedParameters = DEFAULTS) -> InvalidArgument:
    answer = tokenizer.encode_requests([(texts, parameters)])[0]
    assert isinstance(answer, InvalidArgument)
    return answer


@pytest.mark.parametrize("truncate", ["END", "START"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_models_own_tokenizer(
    kind: str, truncate: str, shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    side = "left" if truncate == "START" else "right"
    own = AutoTokenizer.from_pretrained(shelf(kind), truncation_side=side)
    texts = many_texts()
    expected = own(texts, truncation=True, max_length=64).input_ids
    assert encode(tokenizers[kind], texts, EmbedParameters(truncate=truncate)) == expected
    assert max(map(len, expected)) == 64


LONG_TEXTS = [
    ("bert", "END"),
    ("bert", "START"),
    ("roberta", "END"),
    ("xlm-roberta", "START"),
    ("modernbert", "END"),
    ("qwen3", "END"),
]
"""Kinds of tokenizers, and the side on which a text is cut."""


@pytest.mark.parametrize(("kind", "truncate"), LONG_TEXTS)
def test_ids_of_a_long_text_are_those_of_the_models_own_tokenizer(
    kind: str, truncate: str, shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    """tests/slow does this with a megabyte."""
    check_long_texts(shelf(kind), tokenizers[kind], kind, truncate, characters=200_000)


def check_long_texts(folder: Path, tokenizer: TextTokenizer, kind: str, truncate: str, characters: int) -> None:
    """Prose and a single word, each of `characters`, have transformers' ids."""
    side = "left" if truncate == "START" else "right"
    own = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    corpus = training_corpus(1)[: 200 if kind == "bert" else None]
    prose = " ".join(random.Random(1).choices(corpus, k=20_000))[:characters]
    word = "".join(random.Random(2).choices("abcdefghij", k=characters))
    expected = own([prose, word], truncation=True, max_length=64).input_ids
    assert encode(tokenizer, [prose, word], EmbedParameters(truncate=truncate)) == expected


def test_a_long_text_is_not_tokenized_whole(
    tokenizers: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["bert"]
    seen: list[int] = []
    inner = tokenizer._tokenizer

    class Spy:
        def encode_batch_fast(self, texts: list[str]) -> object:
            seen.extend(map(len, texts))
            return inner.encode_batch_fast(texts)

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    monkeypatch.setattr(tokenizer, "_tokenizer", Spy())
    assert len(encode(tokenizer, ["mots épars " * 100_000])[0]) == 64
    # The cut is at the first space after 8 characters per token.
    assert sum(seen) < 2 * 8 * 64


def test_requests_of_one_batch_keep_their_own_parameters(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    texts = [f"a text that names the number {number} " * 20 for number in range(6)]
    kinds = [
        EmbedParameters(truncate=truncate, input_type=input_type)
        for truncate in ("END", "START")
        for input_type in (None, "query", "passage")
    ]
    together = tokenizer.encode_requests([([text.encode()], kind) for text, kind in zip(texts, kinds, strict=True)])
    apart = [tokenizer.encode_requests([([text.encode()], kind)])[0] for text, kind in zip(texts, kinds, strict=True)]
    assert together == apart
    assert len({tuple(answer) for answer in together if isinstance(answer, list)}) == 6


def test_input_type_prepends_the_models_own_prompt(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    plain = encode(tokenizer, ["find: a dog", "text: a dog"])
    assert encode(tokenizer, ["a dog"], EmbedParameters(input_type="query")) == plain[:1]
    assert encode(tokenizer, ["a dog"], EmbedParameters(input_type="passage")) == plain[1:]


def test_a_request_chooses_its_prompt_by_name_or_brings_its_own(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    plain = encode(tokenizer, ["find: a dog", "of mine: a dog", "a dog"])
    asked = [
        EmbedParameters(prompt_name="query"),
        EmbedParameters(prompt="of mine: "),
        EmbedParameters(prompt="", input_type="query"),
    ]
    assert [encode(tokenizer, ["a dog"], one)[0] for one in asked] == plain
    both = EmbedParameters(input_type="passage", prompt_name="query")
    assert encode(tokenizer, ["a dog"], both) == plain[:1]


def test_an_unknown_prompt_fails_its_own_request_alone(tokenizers: dict[str, TextTokenizer]) -> None:
    jobs = [([b"dog"], DEFAULTS), ([b"dog"], EmbedParameters(prompt_name="gone")), ([b"dog"], DEFAULTS)]
    answers = tokenizers["bert"].encode_requests(jobs)
    assert str(answers[1]) == "prompt_name: is not one of the model's: document, query"
    assert answers[0] == answers[2] == [np.array([101, 3899, 102], dtype="<i4").tobytes()]


def configured(model: Path, folder: Path, file: str, **changes: object) -> TextTokenizer:
    """The tokenizer of a copy of the model whose file has other keys."""
    copy_of(model, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return TextTokenizer(read_model_files(str(folder)))


def test_queries_and_passages_have_lengths_of_their_own(shelf: ModelShelf, tmp_path: Path) -> None:
    tokenizer = configured(shelf("bert"), tmp_path, "sentence_bert_config.json", query_length=8, document_length=100)
    for word in ("dog ", "é "):
        kinds = [EmbedParameters(input_type=kind) for kind in (None, "query", "passage")]
        answers = tokenizer.encode_requests([([(word * 200).encode()], kind) for kind in kinds])
        assert [len(answer[0]) // 4 for answer in answers if isinstance(answer, list)] == [64, 8, 100]
        none = EmbedParameters(truncate="NONE", input_type="query")
        assert "over the model's maximum of 8" in str(
            refused(tokenizer, ["é dog dog dog dog".encode() * 2, b"a"], none)
        )


@pytest.mark.parametrize("file", ["tokenizer_config.json", "sentence_bert_config.json"])
def test_a_text_loses_its_start_if_the_model_truncates_on_the_left(
    file: str, shelf: ModelShelf, tmp_path: Path
) -> None:
    changes: dict[str, object] = {"truncation_side": "left"}
    if file == "sentence_bert_config.json":
        changes = {"processor_kwargs": changes}
    tokenizer = configured(shelf("bert"), tmp_path, file, **changes)
    long = [" ".join(map(str, range(200))), "é " + " ".join(map(str, range(200)))]
    assert encode(tokenizer, long) == encode(tokenizer, long, EmbedParameters(truncate="START"))
    assert encode(tokenizer, long) != encode(tokenizer, long, EmbedParameters(truncate="END"))


def test_a_truncation_side_that_only_the_tokenizers_file_has_is_refused(shelf: ModelShelf, tmp_path: Path) -> None:
    truncation = {"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    with pytest.raises(ModelError, match=r"its tokenizer\.json truncates on another side"):
        configured(shelf("bert"), tmp_path, "tokenizer.json", truncation=truncation)


def test_a_maximum_without_room_for_the_special_tokens_is_refused(shelf: ModelShelf, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its max_seq_length leaves no room for the special tokens of a text"):
        configured(shelf("bert"), tmp_path, "sentence_bert_config.json", max_seq_length=1)
    tokenizer = configured(shelf("bert"), tmp_path, "sentence_bert_config.json", max_seq_length=2)
    assert encode(tokenizer, ["dog", "é"]) == [[101, 102]] * 2


def test_none_refuses_a_text_that_is_too_long_and_names_its_place_and_the_maximum(
    tokenizers: dict[str, TextTokenizer],
) -> None:
    none = EmbedParameters(truncate="NONE")
    fits, long = "dog " * 62, "dog " * 63
    assert len(encode(tokenizers["bert"], [fits], none)[0]) == 64
    error = refused(tokenizers["bert"], [b"a", long.encode()], none)
    assert str(error) == "text: sentence 1 has more tokens than the model's maximum of 64"
    error = refused(tokenizers["bert"], [("chien é " * 63).encode()], none)
    assert str(error) == "text: sentence 0 has 191 tokens, over the model's maximum of 64"
    error = refused(tokenizers["bert"], [b"", ("chien é " * 100_000).encode()], none)
    assert str(error) == "text: sentence 1 has more tokens than the model's maximum of 64"


@pytest.mark.parametrize("bad", [b"\xff", b"dog \xc3", "\ud800".encode("utf-8", "surrogatepass"), b"\xc0\x80"])
def test_text_that_is_not_utf8_fails_its_own_request_alone(bad: bytes, tokenizers: dict[str, TextTokenizer]) -> None:
    good = [b"dog"] * 64
    answers = tokenizers["bert"].encode_requests([(good, DEFAULTS), ([*good[:63], bad], DEFAULTS), (good, DEFAULTS)])
    assert isinstance(answers[1], InvalidArgument)
    assert answers[1].name == "text"
    assert "sentence 63 is not valid UTF-8" in str(answers[1])
    assert "dog" not in str(answers[1])
    assert answers[0] == answers[2] == [np.array([101, 3899, 102], dtype="<i4").tobytes()] * 64


def test_sentences_and_truncations_are_counted(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    before = tokenizer.sentences, tokenizer.truncated
    texts = ["dog " * 62, "dog", "dog " * 63, "dog " * 10_000]
    encode(tokenizer, [*texts, *(f"{text} é" for text in texts)])
    assert (tokenizer.sentences, tokenizer.truncated) == (before[0] + 8, before[1] + 5)


def test_a_process_without_torch_gets_the_same_tokenizers(
    shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    program = (
        "import sys; from tritonembed_engine.stub.process import leave_out_torch; leave_out_torch();"
        "from tritonembed_engine.model.files import read_model_files as read;"
        "from tritonembed_engine.tokenizing.loading import load_tokenizer;"
        "print(*(load_tokenizer(read(folder)).to_str() for folder in sys.argv[1:]), sep='\\0');"
        "assert sys.modules['torch'] is None and 'vllm' not in sys.modules"
    )
    command = [sys.executable, "-c", program, *(str(shelf(kind)) for kind in KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "engine"})
    for kind, tokenizer in zip(KINDS, done.stdout.rstrip("\n").split("\0"), strict=True):
        tokenizers[kind]._tokenizer.no_truncation()
        assert json.loads(tokenizer) == json.loads(tokenizers[kind]._tokenizer.to_str())


@functools.cache
def bert_uncased() -> Tokenizer:
    return Tokenizer.from_file(str(BERT_TOKENIZER))


# White space, punctuation, control characters, words inside and outside of the vocabulary, and added tokens.
ASCII = st.one_of(
    st.text(alphabet=st.characters(max_codepoint=127), max_size=12),
    st.sampled_from([" ", "the", "The ", "unaffable", "##ing", "don't", "[SEP]", "[sep]", "[MASK", "3.14", "x" * 101]),
)


@settings(max_examples=200)
@given(text=st.lists(ASCII, max_size=30).map("".join), truncate=st.sampled_from(["END", "START"]))
def test_the_short_way_for_ascii_gives_the_same_ids(
    text: str, truncate: str, tokenizers: dict[str, TextTokenizer]
) -> None:
    reference = bert_uncased()
    reference.enable_truncation(64, direction="left" if truncate == "START" else "right")
    assert encode(tokenizers["bert"], [text], EmbedParameters(truncate=truncate))[0] == reference.encode(text).ids


def test_an_added_token_that_is_matched_after_normalisation_is_still_found(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = copy_of(shelf("bert"), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("café crème", normalized=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    texts = ["a cafe creme please", "a CAFE CREME", "café crème"]
    expected = AutoTokenizer.from_pretrained(folder)(texts).input_ids
    assert 30_522 in expected[0]
    assert encode(TextTokenizer(read_model_files(str(folder))), texts) == expected


def test_do_lower_case_lowercases_before_the_tokenizer(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = copy_of(shelf("roberta"), tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    tokenizer = TextTokenizer(read_model_files(str(folder)))
    assert encode(tokenizer, ["HELLO Wörld"]) == encode(tokenizer, ["hello wörld"])


def test_a_broken_tokenizer_stops_start_up_with_one_line(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = copy_of(shelf("roberta"), tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        TextTokenizer(read_model_files(str(folder)))
    assert "tokenizer can't be loaded" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_that_the_tokenizer_refuses_fails_its_own_request_alone(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = copy_of(shelf("bert"), tmp_path)
    Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = TextTokenizer(read_model_files(str(folder)))
    answers = tokenizer.encode_requests([([b"ab"], DEFAULTS), ([b"a", b"xyz"], DEFAULTS), ([b""], DEFAULTS)])
    assert answers[0] == [np.array([0, 1], dtype="<i4").tobytes()]
    assert str(answers[1]) == "text: sentence 1 holds something that the model's tokenizer refuses"
    assert str(answers[2]) == "text: sentence 0 has no tokens"


def test_the_first_sentence_that_is_too_long_is_the_one_named(tokenizers: dict[str, TextTokenizer]) -> None:
    long = b"dog " * 100
    for texts in ([b"dog", long, long], [b"dog", long, "é ".encode() * 100]):
        error = refused(tokenizers["bert"], texts, EmbedParameters(truncate="NONE"))
        assert "sentence 1 has" in str(error)


@pytest.mark.parametrize("empty", ["", " ", "\u00a0"])
def test_a_text_without_tokens_is_refused_also_on_the_short_way(empty: str, shelf: ModelShelf, tmp_path: Path) -> None:
    folder = copy_of(shelf("bert"), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = TextTokenizer(read_model_files(str(folder)))
    assert encode(tokenizer, ["dog"]) == [[3899]]
    assert str(refused(tokenizer, [b"dog", empty.encode()])) == "text: sentence 1 has no tokens"


def test_the_end_of_a_long_ascii_text_is_cut_before_it_is_tokenized(
    tokenizers: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["bert"]
    seen: list[int] = []
    inner = tokenizer._tokenizer
    assert tokenizer._ascii is not None
    short_way = tokenizer._ascii.encode

    class Spy:
        def encode_batch_fast(self, texts: list[str]) -> object:
            seen.extend(map(len, texts))
            return inner.encode_batch_fast(texts)

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    def spied(text: str, at_most: int | None) -> list[int] | None:
        seen.append(len(text))
        return short_way(text, at_most)

    monkeypatch.setattr(tokenizer, "_tokenizer", Spy())
    monkeypatch.setattr(tokenizer._ascii, "encode", spied)
    assert len(encode(tokenizer, ["some words " * 100_000], EmbedParameters(truncate="START"))[0]) == 64
    assert 0 < sum(seen) < 2 * 8 * 64


def copy_of(model: Path, folder: Path) -> Path:
    """A copy of the model's configuration, without the weights, to be changed."""
    for path in model.rglob("*"):
        if path.suffix == ".json":
            target = folder / path.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder
