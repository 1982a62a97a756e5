"""Tensor parallel: the other processes of a replica that is spread over several GPUs.

Each GPU has a process, which torch.distributed calls a rank. Rank 0 is Triton's python stub; it starts the others
(`follower`). The layers of the model exchange partial sums between the ranks, so every rank has to run the same batches
in the same order. If a rank fails, the others would wait for ever. So all processes of the replica end, and the manager
restarts the server.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import DeviceLost, EmbedError
from tritonembed_engine.executors.base import Executor, Pending
from tritonembed_engine.request import Adapted, Choices
from tritonembed_engine.stub.child_python import module_command, stub_python
from tritonembed_engine.token_ids import Spans, TokenIds

if TYPE_CHECKING:
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.settings import ModelSettings

logger = logging.getLogger(__name__)

CHANNEL_BYTES = 4 << 20
"""Bytes of the channel's buffer, as far as the system allows. Rank 0 waits if it is full."""

SECONDS_TO_END = 5.0
EXIT_CODE = 1


def ranks_of(settings: "ModelSettings") -> int:
    """Processes of a replica: its tensor parallel size.

    1 for pipelines and for other launchers, which vLLM spreads over processes itself.
    """
    own = settings.vllm.get("pipeline_parallel_size", 1) != 1 or "distributed_executor_backend" in settings.vllm
    size = 1 if own else settings.vllm.get("tensor_parallel_size")
    return size if isinstance(size, int) and size > 1 else 1


class Ranks:
    """Starts the followers, and sends every operation to them."""

    def __init__(self, settings: "ModelSettings", files: "ModelFiles", device: str) -> None:
        """device: "cpu" or "cuda". The followers load the model while `load_vllm` does so here."""
        size = ranks_of(settings)
        # torchrun's variables, which torch.distributed reads.
        self._environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["MASTER_PORT"]}
        self._environment |= {"WORLD_SIZE": str(size)}
        self._closed = threading.Event()
        self._followers = [_start(rank, self._environment) for rank in range(1, size)]
        os.environ.update(self._environment | _rank(0))
        for rank, (process, _) in enumerate(self._followers, 1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        self._send_all((settings, files, device))

    def send(self, operation: str, *arguments: object) -> None:
        """Have the followers run an operation of `Follower`. Rank 0 must run it, too, in the same order."""
        self._send_all((operation, arguments))

    def mirror(self, executor: Executor) -> "MirroredExecutor":
        """An executor of all ranks: this one, and the followers' executors of the same name."""
        return MirroredExecutor(executor, self)

    def close(self) -> None:
        """End the followers. They end at once when the channel does."""
        if self._closed.is_set():
            return
        self._closed.set()
        for process, channel in self._followers:
            channel.close()
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in (*self._environment, *_rank(0)):
            if name != "MASTER_PORT":
                os.environ.pop(name, None)

    def _send_all(self, message: object) -> None:
        try:
            for _, channel in self._followers:
                channel.send(message)
        except OSError:
            raise DeviceLost("a process of the replica has ended") from None

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """End this process if a follower ends: collective operations would wait for it for ever."""
        code = process.wait()
        if not self._closed.is_set():
            logger.error("the process of rank %d ended (exit code %d): this replica ends", rank, code)
            sys.stderr.flush()
            os._exit(EXIT_CODE)


class MirroredExecutor:
    """An executor whose batches run in all ranks. Its vectors are those of rank 0."""

    def __init__(self, executor: Executor, ranks: Ranks) -> None:
        self._executor = executor
        self._ranks = ranks
        self.name = executor.name
        self.dtype = executor.dtype
        self.dimensions = executor.dimensions
        self.max_batch_tokens = executor.max_batch_tokens
        self.max_batch_sentences = executor.max_batch_sentences
        self.depth = executor.depth
        self.refused_id = executor.refused_id
        self.on_any_thread = executor.on_any_thread
        self.pools_spans = executor.pools_spans
        self.token_dimensions = executor.token_dimensions

    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),
    ) -> Pending:
        """See Executor. Raises DeviceLost for any failure: the ranks may have stopped at different operations."""
        assert not adapted, "adapters are not loaded in ranks"
        self._ranks.send("launch", self.name, sentences, skips, spans, choices)
        try:
            return self._executor.launch(sentences, skips, spans, choices)
        except Exception as error:
            raise DeviceLost(f"a batch failed in one of the replica's processes ({type(error).__name__})") from error

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`. If one rank has no room for a batch, the others wait for it."""
        problem = self._executor.explain(error)
        return problem if isinstance(problem, DeviceLost) else DeviceLost(f"{problem}, in a replica of several GPUs")

    def rest(self) -> None:
        """Return cached memory in all ranks."""
        self._ranks.send("rest", self.name)
        self._executor.rest()

    def close(self) -> None:
        """Free the model's memory in all ranks; their processes end."""
        self._ranks.close()
        self._executor.close()


def _start(rank: int, environment: Mapping[str, str]) -> "tuple[subprocess.Popen[bytes], Connection]":
    """The process of a follower, and the channel to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)
        process = subprocess.Popen(
            module_command("tritonembed_engine.executors.follower", str(theirs.fileno()), python=stub_python()),
            env={**os.environ, **environment, **_rank(rank)},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
    return process, Connection(ours.detach())


def _rank(rank: int) -> dict[str, Any]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}
