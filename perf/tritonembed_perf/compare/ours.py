"""This project: Triton called directly, and through the manager."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from tritonembed_perf.compare.deferred_signals import deferred_signals
from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, Endpoint
from tritonembed_perf.manager import running_manager
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.run.kserve import KServe
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.server import running_server

T = TypeVar("T")


def _base(bench: Bench) -> list[str]:
    return ["--device", bench.device, "--dtype", bench.dtype]


class Direct:
    """One Triton server, asked over gRPC."""

    name = "tritonembed"
    note = ""

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says."""
        shapes = ((3, 8), (6, 12)) if bench.on_gpu else ((1, 1), (1, 2), (2, 1))
        return [
            Config(("--replicas", str(replicas), "--tokenizer-instances", str(tokenizers)))
            for replicas, tokenizers in shapes
        ]

    def with_replicas(self, bench: Bench, count: int) -> Config:
        """For a comparison of counts."""
        return Config(("--replicas", str(count), "--tokenizer-instances", "8" if bench.on_gpu else "1"))

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """As Peer says."""
        with _started(running_server(str(bench.model), [*_base(bench), *config.flags])) as server:
            yield KServe(server.target)


class ThroughManager:
    """The manager before one Triton server, asked over gRPC or as an OpenAI server."""

    def __init__(self, name: str, protocol: str) -> None:
        self.name = name
        self.note = "through the manager" + (", base64 over HTTP" if protocol == "openai" else "")
        self._protocol = protocol

    def prepare(self, bench: Bench) -> None:
        """As Peer says."""

    def configs(self, bench: Bench) -> Sequence[Config]:
        """As Peer says."""
        shapes = ((3, 4),) if bench.on_gpu else ((1, 1), (1, 2))
        return [Config(("--num-replicas", str(replicas), "--workers", str(workers))) for replicas, workers in shapes]

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """As Peer says."""
        with _started(running_manager(str(bench.model), [*_base(bench), *config.flags])) as manager:
            if self._protocol == "openai":
                yield OpenAI(manager.url, str(bench.model))
            else:
                yield KServe(manager.target)


@contextmanager
def _started(server: AbstractContextManager[T]) -> Iterator[T]:
    """Its start fails as a peer's does, and its end is not cut short."""
    stack = ExitStack()
    try:
        running = stack.enter_context(server)
    except ServerEndedError as error:
        raise CannotRunError(str(error)) from None
    try:
        yield running
    finally:
        with deferred_signals():
            stack.close()
