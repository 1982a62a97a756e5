"""Sentences as token ids: checked, joined and counted once, when a request arrives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument

BYTES_PER_TOKEN = 4

TYPE_BIT = 30
"""The bit of an id that marks a token of type 1: the second text of a pair. vLLM's models read it there."""

ID_MASK = (1 << TYPE_BIT) - 1


@dataclass(frozen=True, eq=False, slots=True)
class TokenIds:
    """Sentences one after the other, without padding. ids: int32 [tokens]. lengths: int32 [sentences], in tokens."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def join(cls, elements: Sequence[bytes]) -> "TokenIds":
        """elements: the ids of each sentence as little-endian int32."""
        return cls._join(elements, list(map(len, elements)))

    @classmethod
    def _join(cls, elements: Sequence[bytes], sizes: list[int]) -> "TokenIds":
        lengths = np.array(sizes, dtype=np.int32) // BYTES_PER_TOKEN
        return cls(np.frombuffer(b"".join(elements), dtype="<i4"), lengths)

    @classmethod
    def concatenate(cls, parts: "Sequence[TokenIds]") -> "TokenIds":
        """All sentences of all parts; of a single part no copy is made."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        """The ids of each sentence."""
        start = 0
        for stop in np.cumsum(self.lengths).tolist():
            yield self.ids[start:stop]
            start = stop

    @property
    def tokens(self) -> int:
        """Number of tokens in all sentences."""
        return len(self.ids)

    def cut(self, start: int, stop: int) -> "TokenIds":
        """Sentences start to stop (exclusive), without a copy."""
        if stop - start == len(self.lengths):
            return self
        first = int(self.lengths[:start].sum())
        lengths = self.lengths[start:stop]
        return TokenIds(self.ids[first : first + int(lengths.sum())], lengths)

    def take(self, places: Sequence[int]) -> "TokenIds":
        """The sentences at these ascending indices."""
        kept = np.zeros(len(self.lengths), dtype=np.bool_)
        kept[places] = True
        return TokenIds(self.ids[np.repeat(kept, self.lengths)], self.lengths[kept])

    def split(self, counts: Sequence[int]) -> "list[TokenIds]":
        """Parts with these numbers of sentences, which add up to all of them, without a copy."""
        if len(counts) == 1:
            return [self]
        ends = np.cumsum(self.lengths).tolist()
        parts, sentence, token = [], 0, 0
        for count in counts:
            next_sentence = sentence + count
            next_token = ends[next_sentence - 1] if next_sentence else 0
            parts.append(TokenIds(self.ids[token:next_token], self.lengths[sentence:next_sentence]))
            sentence, token = next_sentence, next_token
        return parts


@dataclass(frozen=True, eq=False, slots=True)
class Spans:
    """Parts of sentences that are pooled instead of whole sentences.

    counts: int64 [sentences], the spans of each. starts, ends: int32 [spans], first token and the one after the last,
    counted in the sentence.
    """

    counts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Number of spans."""
        return len(self.starts)

    def cut(self, start: int, stop: int) -> "Spans":
        """The spans of sentences start to stop (exclusive)."""
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        return Spans(self.counts[start:stop], self.starts[first:last], self.ends[first:last])

    @classmethod
    def whole(cls, lengths: Sequence[int], skip: int) -> "Spans":
        """One span per sentence: all of it but its first `skip` tokens. lengths: tokens of each sentence."""
        ends = np.asarray(lengths, dtype=np.int32)
        return cls(np.ones(len(ends), np.int64), np.minimum(skip, ends), ends)

    @classmethod
    def concatenate(cls, parts: "Sequence[Spans]") -> "Spans":
        """The spans of all sentences of all parts."""
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.ends for part in parts]),
        )

    def rows_of(self, sentences: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """The numbers of these sentences' spans, in the order of the sentences."""
        ends = np.cumsum(self.counts)
        return np.concatenate([np.arange(ends[one] - self.counts[one], ends[one]) for one in sentences])

    def places(self, lengths: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
        """Start and end of each span in a flat batch. lengths: int32 [sentences], in tokens."""
        firsts = np.repeat(np.cumsum(lengths, dtype=np.int64) - lengths, self.counts)
        return list(zip((firsts + self.starts).tolist(), (firsts + self.ends).tolist(), strict=True))


ONE_TOKEN = TokenIds(np.ones(1, dtype=np.int32), np.ones(1, dtype=np.int32))
"""The smallest batch: a sentence of the id 1."""


@dataclass(frozen=True)
class TokenIdLimits:
    """What the embedder accepts. max_length: tokens per sentence. vocab_size: ids are below it.

    refused_id: an id that the executor would give a wrong position, if there is one. has_types: whether ids may have
    TYPE_BIT.
    """

    max_length: int
    vocab_size: int
    refused_id: int | None = None
    has_types: bool = False

    def read(self, elements: Sequence[bytes]) -> TokenIds:
        """The elements of the tensor `token_ids`, each a sentence's ids as little-endian int32.

        Raises InvalidArgument, which names the sentence and the limit. The embedder never truncates: a sentence that is
        too long is refused whatever `truncate` says.
        """
        sizes = list(map(len, elements))
        if wrong := {size: problem for size in set(sizes) if (problem := self._problem_of(size))}:
            index = next(index for index, size in enumerate(sizes) if size in wrong)
            raise _wrong(index, wrong[sizes[index]])
        sentences = TokenIds._join(elements, sizes)
        if self.refused_id is not None and (refused := sentences.ids == self.refused_id).any():
            raise _wrong(_sentence_at(sentences, refused), "has the padding token, which vLLM's scheduler can't place")
        # One comparison covers both ends: a negative id is a large unsigned one.
        unsigned = sentences.ids.view(np.uint32)
        if self.has_types:
            # Bit 31 stays, so a negative id is still a large one.
            unsigned = unsigned & ~np.uint32(1 << TYPE_BIT)
        if np.maximum.reduce(unsigned, initial=0) >= self.vocab_size:
            index = _sentence_at(sentences, unsigned >= self.vocab_size)
            raise _wrong(index, f"has an id outside the vocabulary of 0 to {self.vocab_size - 1}")
        return sentences

    def _problem_of(self, size: int) -> str | None:
        """What is wrong with a sentence of this many bytes, or None."""
        if size % BYTES_PER_TOKEN:
            return f"has {size} bytes, not a multiple of {BYTES_PER_TOKEN}"
        if size == 0:
            return "has no tokens"
        if size > self.max_length * BYTES_PER_TOKEN:
            return f"has {size // BYTES_PER_TOKEN} tokens, over the model's maximum of {self.max_length}"
        return None


def holds(sentence: bytes, token_id: int) -> bool:
    """Whether a sentence contains an id. sentence: int32, little-endian."""
    return bool((np.frombuffer(sentence, dtype="<i4") == token_id).any())


def _sentence_at(sentences: TokenIds, tokens: npt.NDArray[np.bool_]) -> int:
    """The sentence of the first token that is True."""
    return int(np.searchsorted(np.cumsum(sentences.lengths), tokens.argmax(), side="right"))


def _wrong(index: int, problem: str) -> InvalidArgument:
    return InvalidArgument("token_ids", f"sentence {index} {problem}")
