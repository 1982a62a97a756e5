"""Host and device buffers of one batch: pinned, made once, lent from a batch's launch to its result."""

from collections import deque
from collections.abc import Iterable

import numpy as np
import torch

from tritonembed_engine.executors.flat_batch import FlatBatch

FEW_SENTENCES = 16


class Inputs:
    """Views into a packed int32 buffer: starts, lengths, ids and positions of `sentences` and `tokens`."""

    def __init__(self, buffer: torch.Tensor, sentences: int, tokens: int) -> None:
        sizes = (sentences + 1, sentences, tokens, tokens)
        self.packed = buffer[: sum(sizes)]
        self.starts, self.lengths, self.ids, self.positions = self.packed.split(sizes)


def packed_size(sentences: int, tokens: int) -> int:
    """Elements of the buffer for the largest batch."""
    return 2 * sentences + 1 + 2 * tokens


class Stages:
    """Those that no batch has now. Turns alone would not do: a launch that fails takes its turn without a result, and
    its successors would come round to the stage of a batch that is still in flight."""

    def __init__(self, stages: "Iterable[Stage]") -> None:
        # All are kept: to free pinned memory asks CUDA, and where the GPU is lost the error there ends the process.
        self._all = tuple(stages)
        self._free = deque(self._all)

    def take(self) -> "Stage":
        """For a batch that is launched; `give_back` must follow. Raises IndexError where all are taken."""
        return self._free.popleft()

    def give_back(self, stage: "Stage") -> None:
        """Its answer was copied, or there will be none."""
        self._free.append(stage)


class Stage:
    """What one batch in flight owns on the host: its inputs and its answer, both pinned."""

    def __init__(self, sentences: int, tokens: int, dimensions: int) -> None:
        pinned = torch.cuda.is_available()
        self._inputs = torch.empty(packed_size(sentences, tokens), dtype=torch.int32, pin_memory=pinned)
        self.answer = torch.empty((sentences, dimensions), dtype=torch.float32, pin_memory=pinned)
        # Whoever waits for many sentences sleeps: spinning would take a core that the tokenizers need. For a few the
        # wait is short, and waking up would be a good part of it (80 µs and cold caches, of 800).
        self._sleeping = torch.cuda.Event(blocking=True)
        self._spinning = torch.cuda.Event(blocking=False)

    def done(self, sentences: int) -> torch.cuda.Event:
        """The event to record after a batch of so many sentences."""
        return self._spinning if sentences <= FEW_SENTENCES else self._sleeping

    def fill(self, batch: FlatBatch, sentences: int) -> torch.Tensor:
        """Pack a batch, with empty sentences at the end up to `sentences`."""
        inputs = Inputs(self._inputs, sentences, batch.tokens)
        for view, values, padding in (
            (inputs.starts, batch.starts, batch.tokens),
            (inputs.lengths, batch.lengths, 0),
            (inputs.ids, batch.ids, 0),
            (inputs.positions, batch.positions, 0),
        ):
            array: np.ndarray = view.numpy()  # type: ignore[type-arg]
            array[: len(values)] = values
            array[len(values) :] = padding
        return inputs.packed
