"""The arrays of a flat batch on the host, and the pinned buffers through which they reach a GPU.

The buffers are made once. A batch has one of them from its launch to its result.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.token_ids import TokenIds

FEW_SENTENCES = 16


@dataclass(frozen=True)
class FlatBatch:
    """Sentences one after the other, without padding.

    ids: int32 [tokens]. positions: int64 [tokens], from 0 in each sentence. cu_seqlens: int32 [sentences + 1].
    lengths: int32 [sentences]. places: int64 [tokens], like positions, except that padding inside a text counts.
    """

    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    places: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Number of tokens in all sentences."""
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths.max())


def flatten(sentences: TokenIds, padding_id: int | None = None) -> FlatBatch:
    """The arrays of a batch.

    padding_id: for models like RoBERTa. If a text itself holds padding, transformers gives that token padding's own
    position (-1 here) and does not count it.
    """
    ids, lengths = sentences.ids, sentences.lengths
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    positions = places = np.arange(cu_seqlens[-1], dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths)
    if padding_id is not None and (ids == padding_id).any():
        counted = ids != padding_id
        # The padding tokens before each token, less those before its sentence.
        before = np.concatenate([[0], np.cumsum(~counted)])
        positions = np.where(counted, positions - (before[1:] - np.repeat(before[cu_seqlens[:-1]], lengths)), -1)
    return FlatBatch(ids, positions, cu_seqlens, lengths, places)


def begins_of(batch: FlatBatch, skips: Sequence[int]) -> npt.NDArray[np.int32]:
    """The first token of each sentence that is pooled: int32 [sentences]. skips: tokens before it in the sentence."""
    return batch.cu_seqlens[:-1] + np.asarray(skips, dtype=np.int32)


def pad(batch: FlatBatch, tokens: int, longest: int) -> FlatBatch:
    """The batch, filled up to `tokens` tokens with sentences of token 0, none longer than `longest`.

    Every row belongs to a sentence, because attention does not write other rows. A tile that reaches over the end of a
    sentence multiplies the rows behind it by zero, and a NaN there would survive that.
    """
    missing = tokens - batch.tokens
    if not missing:
        return batch
    cu_seqlens = np.append(np.arange(batch.tokens, tokens, longest, dtype=np.int32), np.int32(tokens))
    return FlatBatch(
        np.concatenate([batch.ids, np.zeros(missing, dtype=np.int32)]),
        np.concatenate([batch.positions, np.arange(missing, dtype=np.int64) % longest]),
        np.concatenate([batch.cu_seqlens[:-1], cu_seqlens]),
        np.concatenate([batch.lengths, np.diff(cu_seqlens)]),
        np.concatenate([batch.places, np.arange(missing, dtype=np.int64) % longest]),
    )


class Inputs:
    """Views into a packed int32 buffer: cu_seqlens, lengths, ids and positions of `sentences` and `tokens`."""

    def __init__(self, buffer: torch.Tensor, sentences: int, tokens: int) -> None:
        sizes = (sentences + 1, sentences, tokens, tokens)
        self.packed = buffer[: sum(sizes)]
        self.cu_seqlens, self.lengths, self.ids, self.positions = self.packed.split(sizes)


def packed_size(sentences: int, tokens: int) -> int:
    """Elements of the buffer for a batch of this size."""
    return 2 * sentences + 1 + 2 * tokens


class Stages:
    """Pool of free stages. Round-robin would be unsafe: after a failed launch it could hand out a stage whose batch is
    still in flight."""

    def __init__(self, stages: "Iterable[Stage]") -> None:
        # A reference to each is kept: freeing pinned memory calls CUDA, and if the GPU is lost, the error there ends
        # the process.
        self._all = tuple(stages)
        self._free = deque(self._all)

    def take(self) -> "Stage":
        """A stage for a batch; `give_back` must follow. Raises IndexError if all are taken."""
        return self._free.popleft()

    def give_back(self, stage: "Stage") -> None:
        """To be called once its answer was copied, or if there will be no answer."""
        self._free.append(stage)


class Stage:
    """The host memory of one batch in flight: its inputs and its answer, both pinned."""

    def __init__(self, sentences: int, tokens: int, dimensions: int) -> None:
        pinned = torch.cuda.is_available()
        self._inputs = torch.empty(packed_size(sentences, tokens), dtype=torch.int32, pin_memory=pinned)
        self.answer = torch.empty((sentences, dimensions), dtype=torch.float32, pin_memory=pinned)
        # The wait for many sentences sleeps: spinning would take a core that the tokenizers need. The wait for a few
        # sentences spins: it is short (800 µs), and waking up would be a large part of it (80 µs and cold caches).
        self._sleeping = torch.cuda.Event(blocking=True)
        self._spinning = torch.cuda.Event(blocking=False)

    def done(self, sentences: int) -> torch.cuda.Event:
        """The event to record after a batch of this many sentences."""
        return self._spinning if sentences <= FEW_SENTENCES else self._sleeping

    def fill(self, batch: FlatBatch, sentences: int) -> torch.Tensor:
        """Pack a batch, with empty sentences at the end up to `sentences`."""
        inputs = Inputs(self._inputs, sentences, batch.tokens)
        for view, values, padding in (
            (inputs.cu_seqlens, batch.cu_seqlens, batch.tokens),
            (inputs.lengths, batch.lengths, 0),
            (inputs.ids, batch.ids, 0),
            (inputs.positions, batch.positions, 0),
        ):
            array: np.ndarray = view.numpy()  # type: ignore[type-arg]
            array[: len(values)] = values
            array[len(values) :] = padding
        return inputs.packed
