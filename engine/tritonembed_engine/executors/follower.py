"""The process of a rank above 0 (see `ranks`): it loads its part of the model and runs the batches of rank 0.

Arguments: the file descriptor of the channel to rank 0. It ends as soon as the channel does, even during a batch.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from tritonembed_engine.stub.process import log_as, prepare_process

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor, Pending
    from tritonembed_engine.executors.vllm_internals import OpenModel
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.request import Choices
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import Spans, TokenIds

logger = logging.getLogger(__name__)


class Follower:
    """A method per operation that rank 0 sends."""

    def __init__(self, settings: "ModelSettings", files: "ModelFiles", device: str, rank: int) -> None:
        from tritonembed_engine.executors.building import build_scheduler
        from tritonembed_engine.executors.loading import load_vllm, longest_in_vllm

        self._settings = settings
        self._files = files
        self._llm = load_vllm(settings, files, device, longest_in_vllm(settings, files), rank)
        scheduler = build_scheduler(self._llm, settings, files, device)
        self._executors: dict[str, Executor] = {scheduler.name: scheduler}
        self._model: OpenModel | None = None
        self._pending: deque[Pending] = deque()

    def open_model(self) -> None:
        """Take the model out of vLLM."""
        from tritonembed_engine.executors.vllm_internals import open_model

        self._model = open_model(self._llm)

    def free_cache(self) -> None:
        """See OpenModel."""
        assert self._model is not None
        self._model.free_cache()

    def build_direct(self) -> None:
        """Make the direct executor. If that fails, it also fails in rank 0, which goes on with the scheduler."""
        from tritonembed_engine.executors.building import build_direct_of_rank

        assert self._model is not None
        scheduler = self._executors["scheduler"]
        try:
            executor = build_direct_of_rank(self._model, self._settings.engine, self._files, scheduler)
        except Exception:
            logger.warning("the direct executor failed", exc_info=True)
        else:
            self._executors[executor.name] = executor

    def launch(
        self,
        name: str,
        sentences: "TokenIds",
        skips: Sequence[int] | None,
        spans: "Spans | None",
        choices: "Choices | None",
    ) -> None:
        """Run a batch. Its vectors are not read here."""
        executor = self._executors[name]
        while len(self._pending) >= executor.depth:
            self._pending.popleft().result()
        self._pending.append(executor.launch(sentences, skips, spans, choices))

    def close(self, name: str) -> None:
        """See Executor. Does nothing if the executor does not exist."""
        while self._pending:
            self._pending.popleft().result()
        if executor := self._executors.pop(name, None):
            executor.close()

    def rest(self, name: str) -> None:
        """See Executor."""
        self._executors[name].rest()


def main() -> None:
    """Follow rank 0 until the channel ends."""
    channel = Connection(int(sys.argv[1]))
    rank, port = os.environ["RANK"], os.environ["MASTER_PORT"]
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES") or None)
    os.environ["MASTER_PORT"] = port
    log_as(f"rank {rank}")
    received: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(channel, received), daemon=True).start()
    settings, files, device = received.get()
    follower = Follower(settings, files, device, int(rank))
    while True:
        operation, arguments = received.get()
        getattr(follower, operation)(*arguments)


def _receive(channel: Connection, received: "SimpleQueue[Any]") -> None:
    """Runs in a thread of its own: the other thread may wait in a collective operation for a process that is gone."""
    try:
        while True:
            received.put(channel.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
