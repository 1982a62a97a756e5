"""This project: Triton called directly, and through the manager."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, Endpoint
from tritonembed_perf.loadgen.grpc_protocols import KServe
from tritonembed_perf.loadgen.openai import OpenAI
from tritonembed_perf.server import ServerEndedError, running_manager, running_server
from tritonembed_perf.signals import deferred_signals


class Ours:
    """A peer of our own: nothing is installed."""

    name = ""
    note = ""

    def prepare(self, bench: Bench) -> None:
        """Nothing is installed."""

    def start(self, stack: ExitStack, bench: Bench, arguments: list[str]) -> Endpoint:
        """Start it, to be stopped by the stack."""
        raise NotImplementedError

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        """Its start fails as a peer's does, and its end is not cut short."""
        stack = ExitStack()
        try:
            endpoint = self.start(stack, bench, ["--device", bench.device, "--dtype", bench.dtype, *config.flags])
        except ServerEndedError as error:
            raise CannotRunError(str(error)) from None
        try:
            yield endpoint
        finally:
            with deferred_signals():
                stack.close()


class Direct(Ours):
    """One Triton server, over gRPC."""

    name = "tritonembed"

    def configs(self, bench: Bench) -> Sequence[Config]:
        shapes = ((3, 8), (6, 12)) if bench.on_gpu else ((1, 1), (1, 2), (2, 1))
        return [
            Config(("--replicas", str(replicas), "--tokenizer-instances", str(tokenizers)))
            for replicas, tokenizers in shapes
        ]

    def with_replicas(self, bench: Bench, count: int) -> Config:
        """For a comparison of counts."""
        return Config(("--replicas", str(count), "--tokenizer-instances", "8" if bench.on_gpu else "1"))

    def start(self, stack: ExitStack, bench: Bench, arguments: list[str]) -> Endpoint:
        return KServe(stack.enter_context(running_server(str(bench.model), arguments)).target)


class ThroughManager(Ours):
    """The manager in front of one Triton server, over gRPC or as an OpenAI server."""

    def __init__(self, name: str, protocol: str) -> None:
        self.name = name
        self.note = "through the manager" + (", base64 over HTTP" if protocol == "openai" else "")
        self._protocol = protocol

    def configs(self, bench: Bench) -> Sequence[Config]:
        shapes = ((3, 4),) if bench.on_gpu else ((1, 1), (1, 2))
        return [Config(("--num-replicas", str(replicas), "--workers", str(workers))) for replicas, workers in shapes]

    def start(self, stack: ExitStack, bench: Bench, arguments: list[str]) -> Endpoint:
        manager = stack.enter_context(running_manager(str(bench.model), arguments))
        return OpenAI(manager.url, str(bench.model)) if self._protocol == "openai" else KServe(manager.target)
