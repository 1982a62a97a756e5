"""A system to compare: a command, its Python, settings to try, and the way of requests."""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_perf.compare.launching import LINE_LENGTH, CannotRunError, launched
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.protocols import WireProtocol
from tritonembed_perf.loadgen.target import ask_server
from tritonembed_perf.server import free_ports

QUESTION_LIMIT_S = 120.0
QUESTION = """
import importlib.util, sys
from importlib import metadata
packages = metadata.packages_distributions()
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is None:
        sys.exit(name + " is not installed")
found = [packages[name][0] for name in sys.argv[1:] if name in packages]
print(", ".join(name + " " + metadata.version(name) for name in found))
"""


@dataclass(frozen=True)
class Bench:
    """The settings of all peers. model: a folder. work: the folder of logs. pythons: of --python, by name."""

    model: Path
    dtype: str
    device: str
    cores: int
    work: Path
    pythons: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Environment:
    """The packages of a peer. name: as --python has it. modules: what it imports; their versions are in the report.

    requirement: what pip installs, in an environment of its own if it does not suit ours.
    """

    name: str
    modules: tuple[str, ...]
    requirement: str


def find_python(bench: Bench, environment: Environment) -> tuple[str, str]:
    """The Python, and versions in words. Raises CannotRunError if something is missing."""
    python = bench.pythons.get(environment.name, sys.executable)
    try:
        asked = [python, "-c", QUESTION, *environment.modules]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=QUESTION_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        raise CannotRunError("its Python does not run") from None
    if done.returncode:
        reason = (done.stderr.splitlines() or ["its Python does not run"])[-1]
        raise CannotRunError(f"{reason}: pip install {environment.requirement}, and --python {environment.name}=PYTHON")
    return python, done.stdout.strip()


def parse_pythons(values: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Reads PEER=PATH, one per option. Raises UsageError."""
    pythons = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or name not in known:
            raise UsageError(f"--python is PEER=PATH, and PEER one of {', '.join(known)}")
        program = shutil.which(Path(path).expanduser())
        if program is None:
            raise UsageError(f"--python {name}: {path} is not a program")
        # Not resolved: a virtual environment's Python is a link.
        pythons[name] = str(Path(program).absolute())
    return pythons


DEFAULTS = "defaults"
"""The settings of a command without any."""

VARIABLE = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class InProcess:
    """Not a server: a program that is given texts. command: speaks the JSON of sentence_transformers_main.py."""

    command: tuple[str, ...]


Endpoint = WireProtocol | InProcess


@dataclass
class Peer:
    """A system that is compared.

    command: words in which `{python}`, `{model}`, `{dtype}`, `{device}`, `{port}` and two more free ports,
    `{port2}` and `{port3}`, are filled in. cpu, gpu: what the sweep tries there, the plainest first, as it is typed:
    variables, then flags; `{cores}` and `{half_cores}` are filled in. protocol: of an address and the model's folder;
    None: the command is a program that is given texts. note: a remark for the table, which `prepare` begins with
    versions. environment: whose Python it is; None: it needs none. variables: with all settings.
    """

    name: str
    command: tuple[str, ...]
    cpu: tuple[str, ...]
    gpu: tuple[str, ...]
    protocol: Callable[[str, Path], WireProtocol] | None
    note: str = ""
    environment: Environment | None = None
    variables: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def prepare(self, bench: Bench) -> None:
        """Find what it needs. Raises CannotRunError."""
        if self.environment is not None:
            self.python, versions = find_python(bench, self.environment)
            self.note = f"{versions}; {self.note}"

    def configs(self, bench: Bench) -> list[str]:
        """What the sweep tries, as it is typed."""
        half = max(1, bench.cores // 2)
        texts = self.gpu if bench.on_gpu else self.cpu
        return [text.format(cores=bench.cores, half_cores=half) for text in texts]

    @contextmanager
    def running(self, bench: Bench, config: str) -> Iterator[Endpoint]:
        """Started, answering, and stopped at the end. Raises CannotRunError."""
        ports = free_ports(3)
        filled = {"python": self.python, "port": ports[0], "port2": ports[1], "port3": ports[2]}
        filled |= {"model": bench.model, "dtype": bench.dtype, "device": bench.device}
        words = [] if config == DEFAULTS else config.split()
        command = [word.format_map(filled) for word in self.command]
        command += [word for word in words if not VARIABLE.match(word)]
        if self.protocol is None:
            yield InProcess(tuple(command))
            return
        variables = dict(word.split("=", 1) for word in words if VARIABLE.match(word))
        endpoint = self.protocol(f"127.0.0.1:{ports[0]}", bench.model)
        with launched(command, self.variables | variables, endpoint, bench.work / "logs" / f"{self.name}.log"):
            yield endpoint


class ArcticInference(Peer):
    """Its source is fetched from PyPI and unpacked: its embedding server is pure Python."""

    version = "0.3.0"

    def prepare(self, bench: Bench) -> None:
        """Fetch it, and let it generate its protobuf modules, as its package does when it is built."""
        super().prepare(bench)
        source = bench.work / f"arctic_inference-{self.version}"
        self.command = tuple(word.replace("{source}", str(source)) for word in self.command)
        if source.exists():
            return
        bench.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=bench.work) as scratch:
            fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            fetch += ["--no-binary=arctic-inference", "--dest", scratch, f"arctic-inference=={self.version}"]
            fetched = subprocess.run(fetch, capture_output=True, text=True)
            archives = list(Path(scratch).glob("*.tar.gz"))
            if not archives:
                reason = (fetched.stderr.splitlines() or ["?"])[-1][:LINE_LENGTH]
                raise CannotRunError(f"pip can't fetch arctic-inference {self.version}: {reason}")
            with tarfile.open(archives[0]) as archive:
                archive.extractall(scratch, filter="data")
            unpacked = Path(scratch) / source.name
            generate = [self.python, str(unpacked / "arctic_inference" / "embedding" / "generate_proto.py")]
            if subprocess.run(generate, capture_output=True).returncode:
                raise CannotRunError("its protobuf modules can't be generated (grpcio-tools)")
            unpacked.rename(source)

    @contextmanager
    def running(self, bench: Bench, config: str) -> Iterator[Endpoint]:
        """If some replicas do not start, its manager serves with fewer; then the note says so."""
        with super().running(bench, config) as endpoint:
            assert not isinstance(endpoint, InProcess)
            healthy = ask_server(endpoint).description
            found, _, wanted, *_ = healthy.split()
            if found != wanted:
                self.note += f"; {healthy}"
            yield endpoint
