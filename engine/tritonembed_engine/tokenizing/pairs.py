"""Pairs of a query and a text as token ids: the query's ids are made once per request, and only the text is cut."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tokenizers import Tokenizer

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.classifier import PairTemplate
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.scores import ScoreParameters
from tritonembed_engine.token_ids import TYPE_BIT
from tritonembed_engine.tokenizing.loading import marks_pairs
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer, decode
from tritonembed_protocol.types import Truncate

PairJob = tuple[Sequence[bytes], Sequence[bytes] | None, ScoreParameters]
"""A request: its texts and equally many queries, in UTF-8. Without queries its texts are classified alone."""


@dataclass(frozen=True)
class _Layout:
    """The ids around a pair's query and text. mark: is added to each of the text's ids."""

    before: list[int]
    between: list[int]
    after: list[int]
    mark: int = 0

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class PairTokenizer:
    """Tokenizes for rerankers and classifiers. For one thread at a time."""

    def __init__(self, files: ModelFiles) -> None:
        """Raises ModelError if the tokenizer can't be loaded, or has no place for a pair."""
        assert files.classifier is not None
        self._texts = TextTokenizer(files)
        self._template = files.classifier.template
        self._limit = files.lengths[None]
        self._truncate = files.truncate
        if self._template is not None:
            self._layout = _layout_of_template(self._template, self._texts)
        else:
            marks = files.has_token_types and marks_pairs(files)
            self._layout = _layout_of_tokenizer(self._texts.tokenizer, files.name, marks)
        if self._layout.tokens >= self._limit:
            raise ModelError(f"{files.name}: its maximum of {self._limit} tokens leaves no room for a pair")

    @property
    def sentences(self) -> int:
        """Pairs and texts that were tokenized so far."""
        return self._texts.sentences

    @property
    def truncated(self) -> int:
        """Pairs and texts that lost tokens to the maximum length."""
        return self._texts.truncated

    def encode_requests(self, jobs: Sequence[PairJob]) -> list[list[bytes] | InvalidArgument]:
        """Per request: the ids of its pairs as little-endian int32, with TYPE_BIT on those of a marked second text; or
        its error."""
        answers: list[list[bytes] | InvalidArgument] = []
        for texts, queries, parameters in jobs:
            try:
                answers.append(self._encode(texts, queries, parameters))
            except InvalidArgument as error:
                answers.append(error)
        return answers

    def _encode(
        self, texts: Sequence[bytes], queries: Sequence[bytes] | None, parameters: ScoreParameters
    ) -> list[bytes]:
        if parameters.instruction is not None and (self._template is None or queries is None):
            raise InvalidArgument("instruction", "the model has no template for instructions")
        if queries is None:
            return self._encode_alone(texts, parameters)
        if len(queries) != len(texts):
            raise InvalidArgument("query", f"there are {len(queries)} for {len(texts)} texts")
        ids_of_queries = {query: self._query(query, index, parameters) for index, query in _firsts(queries)}
        decoded = [decode(text, index) for index, text in enumerate(texts)]
        if self._template is not None:
            decoded = [self._template.fill_text(text) for text in decoded]
        rooms = [self._limit - self._layout.tokens - len(ids_of_queries[query]) for query in queries]
        if parameters.max_text_tokens is not None:
            rooms = [min(room, parameters.max_text_tokens) for room in rooms]
        truncate = cast(Truncate, parameters.truncate or self._truncate)
        found = self._texts.encode_bare(decoded, max(rooms), truncate)
        return [
            self._join(ids_of_queries[query], ids, room, truncate, index)
            for index, (query, ids, room) in enumerate(zip(queries, found, rooms, strict=True))
        ]

    def _encode_alone(self, texts: Sequence[bytes], parameters: ScoreParameters) -> list[bytes]:
        if self._template is not None:
            raise InvalidArgument("query", "the model scores pairs, so a query is needed")
        [answer] = self._texts.encode_requests([(texts, EmbedParameters(truncate=parameters.truncate))])
        if isinstance(answer, InvalidArgument):
            raise answer
        return answer

    def _query(self, query: bytes, index: int, parameters: ScoreParameters) -> list[int]:
        """Ids of a query. Raises InvalidArgument if it leaves no room for a text."""
        text = decode(query, index, "query")
        if not text:
            raise InvalidArgument("query", f"sentence {index} is empty")
        if self._template is not None:
            text = self._template.fill_query(text, parameters.instruction)
        room = self._limit - self._layout.tokens
        [ids] = self._texts.encode_bare([text], room, "END", "query")
        if len(ids) >= room:
            raise InvalidArgument(
                "query",
                f"sentence {index} leaves no room for a text within the model's maximum of {self._limit} tokens",
            )
        return ids

    def _join(self, query: list[int], text: list[int], room: int, truncate: Truncate, index: int) -> bytes:
        if len(text) > room:
            if truncate == "NONE":
                problem = f"sentence {index} has, with its query, more tokens than the model's maximum of {self._limit}"
                raise InvalidArgument("text", problem)
            self._texts.truncated += 1
            text = text[len(text) - room :] if truncate == "START" else text[:room]
        self._texts.sentences += 1
        layout = self._layout
        if layout.mark:
            text = [token | layout.mark for token in text]
        # array is the fastest way from ints to bytes. Every machine that Triton runs on is little-endian.
        return array("i", [*layout.before, *query, *layout.between, *text, *layout.after]).tobytes()


def _firsts(queries: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Each query once, with the number of its first pair."""
    found: dict[bytes, int] = {}
    for index, query in enumerate(queries):
        found.setdefault(query, index)
    return [(index, query) for query, index in found.items()]


def _layout_of_template(template: PairTemplate, texts: TextTokenizer) -> _Layout:
    before, after = texts.encode_bare([template.before, template.after], None, "NONE")
    # The tokenizer may add special tokens around a whole text.
    prefix, suffix = texts.special_tokens
    return _Layout([*before, *prefix], [], [*suffix, *after])


def _layout_of_tokenizer(tokenizer: Tokenizer, name: str, marks: bool) -> _Layout:
    """Where the tokenizer puts the two texts of a pair. marks: whether the model gets the token types."""
    encoding = tokenizer.encode("a", "a")
    ids = [
        token | (kind << TYPE_BIT if marks else 0) for token, kind in zip(encoding.ids, encoding.type_ids, strict=True)
    ]
    places = [[at for at, own in enumerate(encoding.sequence_ids) if own == number] for number in (0, 1)]
    first, second = places
    if not first or not second or first[-1] > second[0]:
        raise ModelError(f"{name}: its tokenizer does not put a query before a text")
    mark = ids[second[0]] & (1 << TYPE_BIT)
    if any(ids[at] & (1 << TYPE_BIT) for at in first):
        raise ModelError(f"{name}: its tokenizer marks the first text of a pair, not the second")
    return _Layout(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :], mark)
