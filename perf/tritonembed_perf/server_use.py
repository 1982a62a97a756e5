"""What a server on this machine uses: CPU time of its processes, and its GPUs (nvidia-smi)."""

import os
import socket
import subprocess
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import psutil  # type: ignore[import-untyped]

PERIOD_S = 0.5
QUERY = ("nvidia-smi", "--query-gpu=name,utilization.gpu,memory.used", "--format=csv,noheader,nounits")
NO_ANSWER = (OSError, subprocess.SubprocessError, ValueError)
"""Exceptions of `query_gpus`: without a GPU, or without its driver."""


class ServerProcesses:
    """The processes that listen at host:port, what started them, and all below.

    A manager and its Triton servers, a Triton server and its python stubs, an HTTP server and its workers.
    """

    def __init__(self, roots: list[psutil.Process]) -> None:
        self._roots = roots
        self._spent: dict[psutil.Process, float] = {}

    @staticmethod
    def find(server: str) -> "ServerProcesses | None":
        """None if the server is on another machine, or its processes can't be seen."""
        parts = urlsplit(server if "://" in server else f"//{server}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not _is_local(parts.hostname or ""):
            return None
        try:
            connections = psutil.net_connections("tcp")
        except psutil.Error:
            return None
        listeners = {
            found.pid for found in connections if found.status == psutil.CONN_LISTEN and found.laddr.port == port
        }
        roots = {_root(psutil.Process(pid)) for pid in listeners if pid is not None and psutil.pid_exists(pid)}
        return ServerProcesses(list(roots)) if roots else None

    def cpu_seconds(self) -> float:
        """User and system time of all of them since they began; of ended processes, up to the last call."""
        for root in self._roots:
            try:
                for process in (root, *root.children(recursive=True)):
                    times = process.cpu_times()
                    self._spent[process] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self._spent.values())


@dataclass(frozen=True)
class GpuUse:
    """One GPU. busy_percent: median share of time in which a kernel ran; memory_mib: the most that was in use."""

    name: str
    busy_percent: float
    memory_mib: int


class GpuMeter:
    """Samples from `start` to `stop`."""

    def __init__(self) -> None:
        self._samples: list[list[tuple[str, int, int]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> list[GpuUse]:
        """One entry per GPU; empty without a GPU."""
        self._stop.set()
        self._thread.join()
        return [
            GpuUse(series[0][0], float(np.median([busy for _, busy, _ in series])), max(used for *_, used in series))
            for series in zip(*self._samples, strict=False)
        ]

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self._samples.append(query_gpus())
            except NO_ANSWER:
                return


def query_gpus() -> list[tuple[str, int, int]]:
    """For each GPU its name, the per cent of time in which a kernel ran, and the MiB in use. Raises NO_ANSWER."""
    answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
    rows = [line.rsplit(", ", 2) for line in answer.splitlines()]
    return [(name, int(busy), int(used)) for name, busy, used in rows]


def _is_local(host: str) -> bool:
    """Whether one can listen at an address of that name here."""
    try:
        addresses = {(family, address[0]) for family, _, _, _, address in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    for family, address in addresses:
        try:
            socket.create_server((address, 0), family=family).close()
        except OSError:
            continue
        return True
    return False


def _root(process: psutil.Process) -> psutil.Process:
    """The topmost of the processes that started it as part of one command.

    They are of the same process group or run the same program, as a manager and its workers; what is above us as well,
    a shell or a test runner, is no part of the server.
    """
    above_us = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    try:
        for parent in process.parents():
            is_same_group = os.getpgid(parent.pid) == os.getpgid(process.pid)
            if parent.pid in above_us or not (is_same_group or parent.exe() == process.exe()):
                break
            process = parent
    except (psutil.Error, OSError):
        pass
    return process
