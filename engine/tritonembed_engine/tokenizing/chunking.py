"""A text of more tokens than the model takes, as chunks: parts of the text that are embedded one by one.

A chunk holds as many whole sentences as fit. A sentence that does not fit alone is cut at a word border, and a word
that does not fit at a token border. The tokens of a chunk are those of the prompt and the part of the text, tokenized
together, with special tokens: its vector is that of a request with this part alone.

The text is tokenized window by window, so a text of megabytes is refused as soon as it has too many chunks.

For late chunking, a text goes through the model whole, and then its spans are pooled: `tokens_of` has their tokens.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from tritonembed_engine.chunks import Chunk, Span
from tritonembed_engine.errors import InvalidArgument
from tritonembed_protocol.limits import MAX_TEXT_CHUNKS

CHARACTERS_PER_TOKEN = 8
"""A window begins with this many characters per token of a chunk; it is doubled until it holds more tokens than fit."""

_SENTENCE_END = re.compile(
    r"""[.!?…]+["'”’»)\]]*(?=\s)"""
    r"""|[。！？｡]+[」』”’）]*"""
    r"""|\S(?=[^\S\n]*\n\s*\n)"""
)
"""Where a sentence ends: punctuation and then white space, punctuation of Chinese and Japanese, or an empty line."""


@dataclass(frozen=True)
class ChunkSize:
    """tokens: the most of a chunk, prompt and special tokens included. overlap: tokens that it shares with the last."""

    tokens: int
    overlap: int = 0


class Chunker:
    """Chunks of texts under one tokenizer, which must not truncate meanwhile."""

    def __init__(self, tokenizer: Tokenizer, special_tokens: int) -> None:
        """special_tokens: how many the tokenizer adds to a text."""
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens

    def chunks(self, text: str, prompt: str, size: ChunkSize, index: int) -> list[Chunk]:
        """The chunks of a text, in order; one chunk if the text fits. Offsets are those of the text without the prompt.

        index: of the text, for errors. Raises InvalidArgument if the prompt leaves too little room, or if there are
        more than MAX_TEXT_CHUNKS.
        """
        whole = self._encode(prompt + text) if len(text) <= CHARACTERS_PER_TOKEN * size.tokens else None
        if whole is not None and len(whole) <= size.tokens:
            return [Chunk(_packed(whole), 0, len(text))]
        cutter = _Cutter(self._tokenizer, text, self._room(prompt, size))
        found: list[Chunk] = []
        start, covered = cutter.skip_space(0), 0
        while start < len(text) or not found:
            if len(found) == MAX_TEXT_CHUNKS:
                raise InvalidArgument("text", f"sentence {index} has more than {MAX_TEXT_CHUNKS} chunks")
            window = cutter.window(start)
            longest = self._longest(text, prompt, size, cutter, window, covered)
            after = cutter.skip_space(covered)
            if longest is None and start < after:
                # The overlap leaves no room for even one more character.
                start = after
                continue
            if longest is None:
                problem = f"sentence {index} has a character of more tokens than there is room for in a chunk"
                raise InvalidArgument("text", problem)
            ids, covered = longest
            found.append(Chunk(_packed(ids), start, covered))
            after = cutter.skip_space(covered)
            if after >= len(text):
                break
            start = cutter.overlapped(window, covered, size.overlap) if size.overlap else after
        return found

    def _room(self, prompt: str, size: ChunkSize) -> int:
        """Tokens of a chunk's own text. Raises InvalidArgument."""
        of_prompt = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0
        room = size.tokens - self._special_tokens - of_prompt
        if room < 1:
            raise InvalidArgument("truncate", f"a chunk of {size.tokens} tokens has no room for text beside the prompt")
        if size.overlap > room // 2:
            problem = f"{size.overlap} is over the half of the {room} tokens that a chunk has for text"
            raise InvalidArgument("chunk_overlap", problem)
        return room

    def _longest(
        self, text: str, prompt: str, size: ChunkSize, cutter: "_Cutter", window: "_Window", covered: int
    ) -> tuple[list[int], int] | None:
        """Ids of the longest chunk at the window's start that fits, and where it ends: beyond `covered`; None if there
        is none.

        Tokenized alone, a part can have other tokens than within its window: then the part is shortened.
        """
        room = cutter.room
        while True:
            end = cutter.end(window, room, covered)
            ids = self._encode(prompt + text[window.start : end])
            excess = len(ids) - size.tokens
            if excess <= 0:
                return ids, end
            # The chunk may have room for more tokens, because it ended with a sentence.
            room = min(room, window.tokens_until(end)) - excess
            if room < 1:
                return None

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        return ids


@dataclass(frozen=True)
class _Window:
    """A part of a text from `start` on. offsets: where each of its tokens begins, in the text; the end comes last."""

    start: int
    offsets: list[int]

    def tokens_until(self, end: int) -> int:
        """Tokens that begin before `end`."""
        return sum(offset < end for offset in self.offsets[:-1])


class _Cutter:
    """Borders of one text. room: tokens of the text in a chunk."""

    def __init__(self, tokenizer: Tokenizer, text: str, room: int) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.room = room

    def window(self, start: int) -> _Window:
        """The window at `start`: it holds more tokens than a chunk has room for, or the rest of the text."""
        characters = CHARACTERS_PER_TOKEN * self.room
        while True:
            end = min(start + characters, len(self._text))
            part = self._text[start:end]
            offsets = [start + first for first, _ in self._tokenizer.encode(part, add_special_tokens=False).offsets]
            # The window's own end can divide a word: its last tokens are not the text's.
            if end == len(self._text) or len(offsets) > self.room:
                return _Window(start, [*offsets, end])
            characters *= 2

    def end(self, window: _Window, room: int, covered: int) -> int:
        """Where a chunk of at most `room` tokens ends: after `covered`, at the best border, without white space."""
        at_least = self.skip_space(max(window.start, covered))
        if len(window.offsets) - 1 <= room and window.offsets[-1] == len(self._text):
            return self._without_space(at_least, len(self._text))
        limit = window.offsets[min(room, len(window.offsets) - 1)]
        if limit <= at_least:
            # One character can have several tokens.
            return at_least + 1
        # One character more shows what follows the limit.
        ends = [match.end() for match in _SENTENCE_END.finditer(self._text[at_least : limit + 1])]
        sentence = next((at_least + end for end in reversed(ends) if at_least + end <= limit), None)
        if sentence is not None:
            return sentence
        word = next((at for at in range(limit, at_least, -1) if self._text[at].isspace()), limit)
        return self._without_space(at_least, word)

    def overlapped(self, window: _Window, end: int, overlap: int) -> int:
        """Where the chunk after one that ended at `end` begins: `overlap` tokens before, at the next word if there is
        one."""
        tokens = window.tokens_until(end)
        begin = max(window.offsets[max(tokens - overlap, 0)], window.start + 1)
        if begin >= end:
            return self.skip_space(end)
        word = begin
        if not self._text[begin - 1].isspace():
            word = next((at for at in range(begin, end) if self._text[at].isspace()), begin)
        word = self.skip_space(word)
        return word if word < end else begin

    def skip_space(self, start: int) -> int:
        """The first character from `start` on that is no white space; the text's length if there is none."""
        while start < len(self._text) and self._text[start].isspace():
            start += 1
        return start

    def _without_space(self, start: int, end: int) -> int:
        stripped = start + len(self._text[start:end].rstrip())
        return stripped if stripped > start else end


def _packed(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def tokens_of(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str, prompt: int, index: int
) -> list[Span]:
    """The tokens of each span.

    offsets: start and end of each token in characters of the prompt and the text; a token that the tokenizer added has
    none. spans: start and end in characters of the text. prompt: its characters. index: of the text, for errors. A
    token is part of the span that holds its last character, so spans that divide a text share no token. A token without
    a place, such as RoBERTa's for a lone space, counts between two tokens of a span.
    Raises InvalidArgument for a span that is not within the text or has no token.
    """
    own = [number for number, (start, end) in enumerate(offsets) if start < end]
    lasts = [offsets[number][1] - 1 - prompt for number in own]
    found = []
    for number, (start, end) in enumerate(spans):
        if not start < end <= len(text):
            raise InvalidArgument(
                "spans", f"span {number} of sentence {index} is not within its {len(text)} characters"
            )
        first, stop = bisect_right(lasts, start - 1), bisect_right(lasts, end - 1)
        if first == stop:
            raise InvalidArgument("spans", f"span {number} of sentence {index} has no tokens")
        found.append(Span(own[first], own[stop - 1] + 1, start, end))
    return found
