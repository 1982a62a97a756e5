"""Batches for a forward that takes a rectangle of tokens: sentences of similar length, padded to the longest."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.token_ids import TokenIds


@dataclass(frozen=True)
class PaddedGroup:
    """Some sentences of a batch.

    rows: int64 [sentences], their places in the batch. ids: int64 [sentences, longest]. mask: bool [sentences,
    longest], True for a sentence's own tokens. cu_seqlens: int32 [sentences + 1], the first token of each sentence and
    the end, once the padding is left out. adapter: of all of them.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    cu_seqlens: npt.NDArray[np.int32]
    adapter: str | None = None

    @property
    def has_padding(self) -> bool:
        """Whether any sentence is shorter than the longest."""
        return int(self.cu_seqlens[-1]) < self.ids.size

    def seen(self, unseen: int) -> npt.NDArray[np.bool_]:
        """As `mask`, without the tokens of this id at the end of a sentence; its first token stays."""
        filler = (self.ids == unseen) | ~self.mask
        filler[:, 0] = False
        at_end = np.logical_and.accumulate(filler[:, ::-1], axis=1)[:, ::-1]
        return self.mask & ~at_end


@dataclass(frozen=True)
class Grouping:
    """How a batch is divided.

    most_padding: tokens of padding in a group; about what one more forward pass costs. most_tokens: of a group, padding
    included; a longer sentence is a group of its own.
    """

    most_padding: int
    most_tokens: int

    def groups(self, sentences: TokenIds, padding_id: int) -> Iterator[PaddedGroup]:
        """The groups of a batch, the longest sentences first. padding_id: the id that fills a row."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        for rows in self._rows(sentences.lengths):
            lengths = sentences.lengths[rows]
            columns = np.arange(lengths[0])
            mask = columns < lengths[:, None]
            # Indices behind a row's end point into other sentences; the mask leaves them out.
            taken = np.minimum(starts[rows][:, None] + columns, sentences.tokens - 1)
            ids = np.where(mask, sentences.ids[taken], padding_id).astype(np.int64)
            cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
            np.cumsum(lengths, out=cu_seqlens[1:])
            yield PaddedGroup(rows, ids, mask, cu_seqlens)

    def _rows(self, lengths: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int64]]:
        order = np.argsort(-lengths, kind="stable")
        start = padding = 0
        longest = int(lengths[order[0]])
        for place, length in enumerate(lengths[order].tolist()):
            padding += longest - length
            if place > start and (padding > self.most_padding or (place + 1 - start) * longest > self.most_tokens):
                yield order[start:place]
                start, padding, longest = place, 0, length
        yield order[start:]
