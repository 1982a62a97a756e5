"""The interface of a system that is compared."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tritonembed_perf.compare.launching import launched
from tritonembed_perf.free_ports import free_ports
from tritonembed_perf.loadgen.protocol import WireProtocol


class CannotRunError(Exception):
    """Why a peer has no figures: one line for the table."""


@dataclass(frozen=True)
class Bench:
    """What all peers have in common. model: a folder. work: the folder of virtual environments and logs.

    pythons: of peers by name, to be used as they are. install: whether environments are made for the others.
    """

    model: Path
    dtype: str
    device: str
    cores: int
    gpus: int
    work: Path
    pythons: Mapping[str, str] = field(default_factory=dict)
    install: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Config:
    """One way to run a peer. flags: as they are typed; environment: variables added to the inherited ones."""

    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """For people: variables, then flags."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), *self.flags]) or "defaults"


@dataclass(frozen=True)
class InProcess:
    """Not a server: a program that is given texts. command: speaks the JSON of programs/in_process.py."""

    command: tuple[str, ...]


Endpoint = WireProtocol | InProcess


class Peer(Protocol):
    """A system that is compared."""

    @property
    def name(self) -> str:
        """As --peers names it."""

    @property
    def note(self) -> str:
        """A remark for the table; may be empty."""

    def prepare(self, bench: Bench) -> None:
        """Install what it needs, once. Raises CannotRunError."""

    def configs(self, bench: Bench) -> Sequence[Config]:
        """What the sweep tries, the plainest first."""

    def running(self, bench: Bench, config: Config) -> AbstractContextManager[Endpoint]:
        """Started, answering, and stopped at the end. Raises CannotRunError."""


class ServerPeer:
    """A peer that is one command listening on one port."""

    name = ""
    note = ""

    def prepare(self, bench: Bench) -> None:
        """Nothing is installed."""

    def configs(self, bench: Bench) -> Sequence[Config]:  # noqa: ARG002
        return [Config()]

    def settings(self, bench: Bench) -> dict[str, str]:  # noqa: ARG002
        """Variables of every configuration."""
        return {}

    def command(self, bench: Bench, port: int) -> list[str]:
        """What is run, before the configuration's flags."""
        raise NotImplementedError

    def endpoint(self, bench: Bench, port: int) -> WireProtocol:
        """How requests reach it."""
        raise NotImplementedError

    @contextmanager
    def running(self, bench: Bench, config: Config) -> Iterator[Endpoint]:
        [port] = free_ports(1)
        command = [*self.command(bench, port), *config.flags]
        endpoint = self.endpoint(bench, port)
        log = bench.work / "logs" / f"{self.name}.log"
        with launched(command, {**self.settings(bench), **config.environment}, endpoint, log):
            yield endpoint
