"""An executor without a model: each vector identifies its sentence. It can hold, fail and count."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import EmbedError, ExecutionFailed, OutOfMemory
from tritonembed_engine.request import Adapted, Choices, Request, TokenOutputs
from tritonembed_engine.token_ids import Spans, TokenIds

Array = npt.NDArray[np.float32]
PATIENCE = 60.0
"""Seconds that a test waits for an event that happens at once unless the code is broken."""


def ids(*values: int) -> bytes:
    """A sentence."""
    return np.array(values, dtype="<i4").tobytes()


def request_of(sentences: Sequence[bytes], **fields: Any) -> Request:
    """A request for the engine."""
    return Request(TokenIds.join(sentences), **fields)


def vector_of(sentence: bytes) -> list[float]:
    """What FakeExecutor computes: first id, last id, tokens."""
    values = np.frombuffer(sentence, dtype="<i4")
    return [float(values[0]), float(values[-1]), float(len(values))]


def vectors_of(sentences: Sequence[bytes]) -> Array:
    """A batch of `vector_of`."""
    return np.array([vector_of(sentence) for sentence in sentences], dtype=np.float32)


class FakeExecutor:
    """An `Executor`. `hold` stops the engine in `result` until `let_go`."""

    name = "fake"
    dimensions = 3
    pools_spans = True
    token_dimensions: int | None = None

    def __init__(
        self,
        max_batch_tokens: int = 10,
        max_batch_sentences: int = 4,
        *,
        depth: int = 2,
        on_any_thread: bool = False,
    ) -> None:
        self.refused_id: int | None = None
        self.skips: list[Sequence[int] | None] = []
        self.adapted: list[Adapted] = []
        self.depth = depth
        self.on_any_thread = on_any_thread
        self.threads: list[int] = []
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.batches: list[list[bytes]] = []
        self.events: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.closed = False
        self.rests = 0
        self.rested = threading.Event()
        self.compute: Callable[[Sequence[bytes]], Array] = vectors_of
        self.token_outputs: Callable[[TokenIds, Choices], TokenOutputs] = lambda sentences, choices: {}
        self.before_launch: Callable[[Sequence[bytes]], None] = lambda sentences: None
        self.before_result: Callable[[], None] = lambda: None
        self.holding = threading.Event()
        self._go = threading.Event()
        self._go.set()

    @property
    def computed(self) -> list[bytes]:
        """Every sentence that was launched."""
        return [sentence for batch in self.batches for sentence in batch]

    def hold(self) -> None:
        self._go.clear()

    def let_go(self) -> None:
        self._go.set()

    def launch(
        self,
        batch: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),
    ) -> "FakePending":
        sentences = [ids.tobytes() for ids in batch]
        self.before_launch(sentences)
        self.skips.append(skips)
        self.adapted.append(adapted)
        self.batches.append(sentences)
        self.threads.append(threading.get_ident())
        self.events.append("launch")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return FakePending(self, sentences, self.token_outputs(batch, choices or {}))

    def wait(self) -> None:
        self.holding.set()
        assert self._go.wait(PATIENCE)

    def explain(self, error: Exception) -> EmbedError:
        if isinstance(error, EmbedError):
            return error
        if isinstance(error, MemoryError):
            return OutOfMemory("no room")
        return ExecutionFailed(f"a batch failed: {type(error).__name__}")

    def rest(self) -> None:
        self.rests += 1
        self.rested.set()

    def close(self) -> None:
        self.closed = True


class FakePending:
    def __init__(self, executor: FakeExecutor, sentences: list[bytes], token_outputs: TokenOutputs) -> None:
        self.token_outputs = token_outputs
        self._executor = executor
        self._sentences = sentences

    def result(self) -> Array:
        self._executor.wait()
        self._executor.events.append("result")
        self._executor.in_flight -= 1
        self._executor.before_result()
        return self._executor.compute(self._sentences)
