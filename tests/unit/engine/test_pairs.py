"""Pairs of a query and a text as ids: those of transformers' own tokenizer, and one clear line for what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model.classifier import QWEN3_RERANKER
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.scores import ScoreParameters
from tritonembed_engine.token_ids import ID_MASK, TYPE_BIT
from tritonembed_engine.tokenizing.pairs import PairTokenizer
from tritonembed_perf.families import rerankers
from tritonembed_perf.families.reference import TEXTS

QUERIES = ("how tall is it?", "naïve café", "人人生而自由", "  spaces ", "a")
SHORT = tuple(text for text in TEXTS if len(text) < 100)
LONG = " ".join(f"{word} {n}" for n, word in enumerate(["river", "Montag", "café", "7th"] * 300))


def folder_of(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / name
    folder.mkdir()
    getattr(rerankers, name)(folder)
    return folder


@pytest.fixture(scope="module", params=["ce_bert", "ce_xlmr", "ce_roberta", "ce_modernbert", "ce_deberta_v3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> PairTokenizer:
    return PairTokenizer(read_model_files(str(folder_of(tmp_path_factory, "ce_bert"))))


def encode(
    tokenizer: PairTokenizer, query: str | None, texts: Sequence[str], **parameters: str
) -> list[bytes] | InvalidArgument:
    queries = None if query is None else [query.encode()] * len(texts)
    job = ([text.encode() for text in texts], queries, ScoreParameters(**parameters))
    [answer] = tokenizer.encode_requests([job])
    return answer


def refusal(tokenizer: PairTokenizer, query: str | None, texts: Sequence[str], **parameters: str) -> str:
    answer = encode(tokenizer, query, texts, **parameters)
    assert isinstance(answer, InvalidArgument)
    return str(answer)


def test_ids_and_types_are_those_of_transformers(folder: Path) -> None:
    files = read_model_files(str(folder))
    ours, theirs = PairTokenizer(files), AutoTokenizer.from_pretrained(folder)
    limit = files.lengths[None]
    for query in QUERIES:
        texts = (*SHORT, LONG)
        answer = encode(ours, query, texts)
        assert not isinstance(answer, InvalidArgument), answer
        for text, found in zip(texts, answer, strict=True):
            expected = theirs([query], [text], truncation="only_second", max_length=limit)
            ids = np.frombuffer(found, "<i4")
            assert (ids & ID_MASK).tolist() == expected["input_ids"][0]
            if "token_type_ids" in expected and files.has_token_types:
                assert (ids >> TYPE_BIT).tolist() == expected["token_type_ids"][0]
            else:
                assert (ids >> TYPE_BIT).max() == 0


def test_a_text_alone_has_the_ids_of_the_tokenizer(folder: Path) -> None:
    files = read_model_files(str(folder))
    answer = encode(PairTokenizer(files), None, (*SHORT, LONG))
    assert not isinstance(answer, InvalidArgument)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text, found in zip((*SHORT, LONG), answer, strict=True):
        expected = theirs(text, truncation=True, max_length=files.lengths[None])["input_ids"]
        assert np.frombuffer(found, "<i4").tolist() == expected


def test_qwen3_reranker_gets_the_template_of_its_card(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = folder_of(tmp_path_factory, "ce_qwen3_reranker")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    instruction = "Find the same song"
    answer = encode(PairTokenizer(read_model_files(str(folder))), "a query", SHORT, instruction=instruction)
    assert not isinstance(answer, InvalidArgument)
    for text, found in zip(SHORT, answer, strict=True):
        pair = tokenizer(f"<Instruct>: {instruction}\n<Query>: a query\n<Document>: {text}")["input_ids"]
        before = tokenizer.encode(QWEN3_RERANKER.before, add_special_tokens=False)
        after = tokenizer.encode(QWEN3_RERANKER.after, add_special_tokens=False)
        assert np.frombuffer(found, "<i4").tolist() == [*before, *pair, *after]


def test_start_keeps_the_end_of_a_text_and_all_of_the_query(bert: PairTokenizer) -> None:
    whole = encode(bert, "the query", ["7th"])
    start, end = (encode(bert, "the query", [LONG], truncate=side) for side in ("START", "END"))
    assert isinstance(whole, list)
    assert isinstance(start, list)
    assert isinstance(end, list)
    query = [int(one) for one in np.frombuffer(whole[0], "<i4") if not one >> TYPE_BIT]
    last = np.frombuffer(whole[0], "<i4")[-2:].tolist()
    for found in (start, end):
        assert np.frombuffer(found[0], "<i4")[: len(query)].tolist() == query
        assert len(found[0]) == 4 * 128
    kept = np.frombuffer(start[0], "<i4")[len(query) :].tolist()
    assert kept != np.frombuffer(end[0], "<i4")[len(query) :].tolist()
    assert kept[-1] == last[-1]
    ids = encode(bert, "the query", [" ".join(LONG.split()[-4:])])
    assert isinstance(ids, list)
    tail = np.frombuffer(ids[0], "<i4")[len(query) :].tolist()
    assert kept[-len(tail) :] == tail


def test_a_text_can_have_fewer_tokens_than_there_is_room_for(bert: PairTokenizer) -> None:
    jobs = [([b"one two three"], [b"a query"], ScoreParameters(max_text_tokens=1))]
    [cut] = bert.encode_requests(jobs)
    whole = encode(bert, "a query", ["one two three"])
    assert isinstance(cut, list)
    assert isinstance(whole, list)
    ids, all_ids = (np.frombuffer(one, "<i4") for one in (cut[0], whole[0]))
    text = [token for token in all_ids.tolist() if token >> TYPE_BIT]
    assert ids.tolist() == [*(token for token in all_ids.tolist() if not token >> TYPE_BIT), text[0], text[-1]]


def test_a_query_is_tokenized_once_per_request(bert: PairTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []
    before = bert._texts.encode_bare

    def counted(texts: Sequence[str], *arguments: object, **more: object) -> list[list[int]]:
        tokenized.extend(texts)
        return before(texts, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(bert._texts, "encode_bare", counted)
    encode(bert, "the query", ["one", "two", "three"])
    assert tokenized == ["the query", "one", "two", "three"]


def test_rows_may_have_different_queries(bert: PairTokenizer) -> None:
    [together] = bert.encode_requests([([b"one", b"two"], [b"first", b"second"], ScoreParameters())])
    assert together == [*encode(bert, "first", ["one"]), *encode(bert, "second", ["two"])]


def test_what_is_refused_is_named_in_one_line(bert: PairTokenizer) -> None:
    assert refusal(bert, "", ["a text"]) == "query: sentence 0 is empty"
    long = refusal(bert, LONG, ["a text"])
    assert long == "query: sentence 0 leaves no room for a text within the model's maximum of 128 tokens"
    full = refusal(bert, "a query", ["a", LONG], truncate="NONE")
    assert full == "text: sentence 1 has, with its query, more tokens than the model's maximum of 128"
    assert refusal(bert, "a query", ["a"], instruction="x").startswith("instruction: the model has no template")
    [answer] = bert.encode_requests([([b"\xff"], [b"a query"], ScoreParameters())])
    assert str(answer).startswith("text: sentence 0 is not valid UTF-8")
    [answer] = bert.encode_requests([([b"a", b"b"], [b"a query"], ScoreParameters())])
    assert str(answer) == "query: there are 1 for 2 texts"


def test_a_refused_request_leaves_its_neighbours_alone(bert: PairTokenizer) -> None:
    jobs = [([b"a"], [b"good"], ScoreParameters()), ([b"a"], [b""], ScoreParameters())]
    good, bad = bert.encode_requests(jobs)
    assert good == encode(bert, "good", ["a"])
    assert isinstance(bad, InvalidArgument)


def test_lost_tokens_are_counted(bert: PairTokenizer) -> None:
    before = bert.truncated
    encode(bert, "a query", ["short", LONG])
    assert bert.truncated == before + 1
