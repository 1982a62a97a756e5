"""Pinned host buffers, made once; a batch has one of them from its launch to its result."""

from collections import deque
from collections.abc import Iterable

import numpy as np
import torch

from tritonembed_engine.executors.flat_batch import FlatBatch

FEW_SENTENCES = 16


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
        # All are kept: freeing pinned memory calls CUDA, and if the GPU is lost, the error there ends the process.
        self._all = tuple(stages)
        self._free = deque(self._all)

    def take(self) -> "Stage":
        """A stage for a batch; `give_back` must follow. Raises IndexError if all are taken."""
        return self._free.popleft()

    def give_back(self, stage: "Stage") -> None:
        """To be called when its answer was copied, or when there will be none."""
        self._free.append(stage)


class Stage:
    """The host memory of one batch in flight: its inputs and its answer, both pinned."""

    def __init__(self, sentences: int, tokens: int, dimensions: int) -> None:
        pinned = torch.cuda.is_available()
        self._inputs = torch.empty(packed_size(sentences, tokens), dtype=torch.int32, pin_memory=pinned)
        self.answer = torch.empty((sentences, dimensions), dtype=torch.float32, pin_memory=pinned)
        # The wait for many sentences sleeps: spinning would take a core that the tokenizers need. The wait for a few
        # sentences is short (800 µs), and waking up would be a large part of it (80 µs and cold caches).
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
