"""Late chunking: parts of a text that went through the model whole, each pooled by its tokens."""

import itertools
import json
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import ModelShelf
from tests.unit.engine.fake_executor import FakeExecutor, ids, request_of, vectors_of
from transformers import AutoModel, AutoTokenizer

from tritonembed_engine.chunks import Span, pack_spans, unpack_spans
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.executors.base import reason_against_spans
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.transformers_executor import GROUPING, TransformersExecutor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.parameters import EmbedParameters, parse_parameters
from tritonembed_engine.token_ids import Spans, TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_protocol.limits import MAX_TEXT_CHUNKS

KINDS = ["bert", "roberta", "xlm-roberta", "modernbert", "qwen3"]
TEXT = "The first sentence. And naïve 😀 中文 words, then a third one! 3.14"
CUTS = [0, 19, 23, 45, 61, len(TEXT)]
PARTS = list(itertools.pairwise(CUTS))
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def tokenizers(shelf: ModelShelf) -> dict[str, TextTokenizer]:
    return {kind: TextTokenizer(read_model_files(str(shelf(kind)))) for kind in KINDS}


def encode(
    tokenizer: TextTokenizer, texts: list[str], spans: list[list[tuple[int, int]]], **asked: str
) -> list[bytes] | InvalidArgument:
    parameters = EmbedParameters(spans=tuple(map(tuple, spans)), **asked)  # type: ignore[arg-type]
    return tokenizer.encode_requests([([text.encode() for text in texts], parameters)])[0]


@pytest.mark.parametrize("prompt", ["", "find: "])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_span_are_those_that_end_in_it(
    kind: str, prompt: str, shelf: ModelShelf, tokenizers: dict[str, TextTokenizer]
) -> None:
    own = AutoTokenizer.from_pretrained(shelf(kind))
    expected = own(prompt + TEXT, return_offsets_mapping=True)
    elements = encode(tokenizers[kind], [TEXT, "a dog"], [PARTS, [(2, 5)]], prompt=prompt)
    assert not isinstance(elements, InvalidArgument), elements
    texts, chunks, spans = unpack_spans(elements)
    assert np.frombuffer(texts[0], "<i4").tolist() == expected.input_ids
    assert chunks.counts.tolist() == spans.counts.tolist() == [len(PARTS), 1]
    assert chunks.offsets.tolist() == [[*part] for part in PARTS] + [[2, 5]]
    for (start, end), first, stop in zip(PARTS, spans.starts.tolist(), spans.ends.tolist(), strict=False):
        inside = [
            number
            for number, (begin, after) in enumerate(expected.offset_mapping)
            if begin < after and start + len(prompt) < after <= end + len(prompt)
        ]
        # RoBERTa has tokens of mere white space without a place: between others they count.
        assert list(range(first, stop)) == list(range(inside[0], inside[-1] + 1))
    # Parts that divide a text share no token.
    assert (spans.starts[1 : len(PARTS)] >= spans.ends[: len(PARTS) - 1]).all()


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[(0, 3)], [(0, 1)]], "spans: there are those of 2 texts, but the request has 1"),
        ([[(0, 3), (3, 67)]], "spans: span 1 of sentence 0 is not within its 5 characters"),
        ([[(3, 3)]], "spans: span 0 of sentence 0 is not within its 5 characters"),
        ([[(4, 2)]], "spans: span 0 of sentence 0 is not within its 5 characters"),
        ([[(0, 1), (1, 2)]], "spans: span 1 of sentence 0 has no tokens"),
    ],
)
def test_spans_that_do_not_fit_the_text_are_refused(
    spans: list[list[tuple[int, int]]], message: str, tokenizers: dict[str, TextTokenizer]
) -> None:
    assert str(encode(tokenizers["bert"], ["a dog"], spans)) == message


def test_a_text_with_spans_must_fit_the_model(tokenizers: dict[str, TextTokenizer]) -> None:
    long = "word " * 63
    found = encode(tokenizers["bert"], [long], [[(0, 4)]])
    assert str(found) == "text: sentence 0 has 65 tokens, over the model's maximum of 64"
    found = encode(tokenizers["bert"], [long * 10_000], [[(0, 4)]])
    assert str(found) == "text: sentence 0 has more tokens than the model's maximum of 64"
    assert isinstance(encode(tokenizers["bert"], ["word " * 62], [[(0, 310)]]), list)


@pytest.mark.parametrize(
    "wrong",
    [
        ids(5, 6),
        ids(-1, 1, 0, 1, 0, 1, 7),
        ids(-2, 0, 7),
        ids(-2, 1, 0, 1, 0),
        ids(-2, 1, 1, 1, 0, 1, 7, 8),
        ids(-2, 1, -1, 1, 0, 1, 7, 8),
        ids(-2, 1, 0, 3, 0, 1, 7, 8),
        ids(-2, 1, 0, 1, 0, 1),
        ids(-2, 1, 0, 1, 0, 1, 7) + b"\0",
    ],
)
def test_a_header_that_does_not_fit_is_refused(wrong: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^token_ids: sentence 0 has a header of chunks that does not fit it$"):
        unpack_spans([wrong])


def test_spans_may_overlap_four_times() -> None:
    whole = Span(0, 3, 0, 9)
    assert len(unpack_spans([pack_spans([5, 6, 7], [whole] * 4)])[2]) == 4
    with pytest.raises(InvalidArgument, match=r"^spans: those of sentence 1 have more than 4 times the tokens"):
        unpack_spans([pack_spans([5, 6, 7], [whole]), pack_spans([5, 6, 7], [whole] * 5)])


@pytest.mark.parametrize(
    "value",
    [
        3,
        "",
        "{",
        "[]",
        "[[]]",
        "[[[1]]]",
        "[[[0, 1, 2]]]",
        "[[0, 1]]",
        "[[[0, -1]]]",
        "[[[0, 1.5]]]",
        "[[[false, true]]]",
        '[[["0", "1"]]]',
        '{"a": 1}',
        "[[[0, 2147483648]]]",
        "[" * 100_000,
    ],
)
def test_spans_that_are_no_json_of_pairs_are_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^spans: must be JSON: a list of \[start, end\] per text$"):
        parse_parameters(json.dumps({"spans": value}))


def test_spans_are_of_whole_texts() -> None:
    assert parse_parameters('{"spans": "[[[0, 3], [3, 5]], [[1, 2]]]"}').spans == (((0, 3), (3, 5)), ((1, 2),))
    assert parse_parameters('{"spans": "[[[0, 3]]]", "truncate": "NONE"}').spans == (((0, 3),),)
    for truncate in ("END", "START", "CHUNK"):
        with pytest.raises(InvalidArgument, match=r"^spans: are of a whole text: truncate can only be NONE$"):
            parse_parameters(json.dumps({"spans": "[[[0, 3]]]", "truncate": truncate}))
    with pytest.raises(InvalidArgument, match=f"^spans: more than {MAX_TEXT_CHUNKS} of one text$"):
        parse_parameters(json.dumps({"spans": json.dumps([[[0, 1]] * (MAX_TEXT_CHUNKS + 1)])}))


def test_a_span_is_the_mean_of_its_tokens_in_float32() -> None:
    hidden = (torch.randn(12, 6, generator=torch.Generator().manual_seed(3)) + 5).to(torch.bfloat16)
    places = [(0, 4), (1, 2), (3, 12), (5, 5)]
    pooled = Pooler((Pooling.MEAN,), Steps(())).of_spans(hidden, places)
    plain = hidden.float().numpy()
    expected = np.stack([plain[start:end].mean(0) if start < end else np.zeros(6) for start, end in places])
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-6)


def test_only_the_mean_has_spans() -> None:
    executor = FakeExecutor()
    assert reason_against_spans([Pooling.MEAN], executor) is None
    for poolings in ([Pooling.CLS], [Pooling.LAST_TOKEN], [Pooling.MEAN, Pooling.MAX], [Pooling.WEIGHTED_MEAN]):
        assert "does not pool by the mean" in str(reason_against_spans(poolings, executor))
    executor.pools_spans = False
    assert reason_against_spans([Pooling.MEAN], executor) == "the fake executor can't pool parts of a text"


class SpanExecutor(FakeExecutor):
    """Computes per span: first id, last id, tokens."""

    def launch(self, batch, skips=None, spans=None, choices=None, adapted=()):  # type: ignore[no-untyped-def]
        if spans is not None:
            assert skips is None
            rows = [
                [batch.ids[start], batch.ids[end - 1], end - start] if start < end else [0, 0, 0]
                for start, end in spans.places(batch.lengths)
            ]
            self.compute = lambda _: np.array(rows, np.float32)
        else:
            self.compute = vectors_of
        return super().launch(batch, skips, spans)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4), max_size=5),
    tokens=st.integers(6, 20),
    sentences=st.integers(1, 4),
    data=st.data(),
)
def test_the_engine_gives_each_request_the_vectors_of_its_spans(
    shape: list[list[tuple[int, int]]], tokens: int, sentences: int, data: st.DataObject
) -> None:
    """shape: of each request, tokens and number of spans of its sentences; a request without spans has none."""
    executor = SpanExecutor(tokens, sentences, depth=1)
    engine = EmbeddingEngine(executor)
    requests, expected = [], []
    for number, lengths in enumerate(shape):
        texts = [[100 * number + 10 * at + token for token in range(length)] for at, (length, _) in enumerate(lengths)]
        if all(count for _, count in lengths):
            drawn = [
                [
                    sorted((data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, length - 1))))
                    for _ in range(n)
                ]
                for length, n in lengths
            ]
            flat = [(first, last + 1) for of_text in drawn for first, last in of_text]
            counts = np.array([len(of_text) for of_text in drawn])
            table = np.array(flat, np.int32)
            spans = Spans(counts, table[:, 0], table[:, 1])
            owners = [text for text, of_text in zip(texts, drawn, strict=True) for _ in of_text]
            expected.append([[t[a], t[b - 1], b - a] for t, (a, b) in zip(owners, flat, strict=True)])
            requests.append(request_of([ids(*text) for text in texts], spans=spans))
        else:
            expected.append([[text[0], text[-1], len(text)] for text in texts])
            requests.append(request_of([ids(*text) for text in texts]))
    futures: list[Future[Array]] = engine.submit_all(requests)
    for future, rows in zip(futures, expected, strict=True):
        assert future.result(60).tolist() == rows
    engine.close()


def test_the_transformers_executor_pools_spans_as_plain_code_does(shelf: ModelShelf) -> None:
    model = AutoModel.from_pretrained(shelf("bert")).eval()
    executor = TransformersExecutor(model, Pooler((Pooling.MEAN,), Steps(())), 4096, 1024, 0, GROUPING["cpu"])
    texts = [[101, 3899, 102], [101, *range(2000, 2030), 102], [101, 4937, 3899, 102]]
    spans = Spans(np.array([1, 3, 2]), *np.array([[1, 2], [0, 9], [9, 32], [5, 6], [1, 4], [0, 2]], np.int32).T)
    found = executor.launch(TokenIds.join([ids(*text) for text in texts]), None, spans).result()
    with torch.inference_mode():
        states = [model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]
    owners = np.repeat([0, 1, 2], spans.counts)
    expected = [states[o][a:b].mean(0) for o, a, b in zip(owners, spans.starts, spans.ends, strict=True)]
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-5)
