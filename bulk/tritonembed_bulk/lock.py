"""One driver per output: each driver writes a lock file, then looks for the files of other drivers.

This needs no conditional put, but a listing that shows all earlier writes, as disks and object stores have it. Of two
drivers that start at once, at least one sees the other. A lock is stale if its process ran on this machine and is gone,
or if the lock was not renewed for a while. All times are the store's own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from tritonembed_bulk.parts import FOLDER, Refused
from tritonembed_bulk.store import Store

LOCKS = f"{FOLDER}/locks"
RENEW_SECONDS = 15.0
STALE_SECONDS = 60.0


class Lock:
    """Held while entered. Raises Refused if another driver holds the output."""

    def __init__(
        self, store: Store, renew_seconds: float = RENEW_SECONDS, stale_seconds: float = STALE_SECONDS
    ) -> None:
        self._store = store
        self._renew, self._stale = renew_seconds, stale_seconds
        self._file = f"{uuid.uuid4().hex}.json"
        self._ended = threading.Event()
        self.lost = False
        """Whether another driver took this lock for a stale one."""
        self._thread = threading.Thread(target=self._keep, name="bulk-lock", daemon=True)

    def __enter__(self) -> Lock:
        self._write()
        try:
            self._look()
        except BaseException:
            self._remove(self._file)
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._remove(self._file)

    def _write(self) -> None:
        owner = {"host": socket.gethostname(), "system": _system(), "pid": os.getpid(), "start": start_of(os.getpid())}
        self._store.put(f"{LOCKS}/{self._file}", json.dumps(owner).encode())

    def _keep(self) -> None:
        while not self._ended.wait(self._renew):
            try:
                if self._store.read(f"{LOCKS}/{self._file}") is None:
                    self.lost = True
                    return
                self._write()
            except OSError:
                continue  # the next time may succeed

    def _look(self) -> None:
        found = {info.base_name: info.mtime.timestamp() for info in self._store.list(LOCKS)}
        now = found[self._file]
        for name, renewed in found.items():
            if name == self._file:
                continue
            owner = self._owner(name)
            if owner is None or now - renewed > self._stale or _is_gone(owner):
                self._remove(name)
                continue
            where = f"process {owner.get('pid')} on {owner.get('host')}"
            raise Refused(f"another job writes this output: {where}; if that is gone, wait {self._stale:.0f} s")

    def _owner(self, name: str) -> dict[str, Any] | None:
        text = self._store.read(f"{LOCKS}/{name}")
        try:
            found = None if text is None else json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _remove(self, name: str) -> None:
        self._store.delete(f"{LOCKS}/{name}")


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and ended. About another machine's process nothing is known."""
    here = owner.get("host") == socket.gethostname() and owner.get("system") == _system()
    return here and isinstance(owner.get("pid"), int) and start_of(owner["pid"]) != owner.get("start")


def _system() -> str:
    """The scope of process ids: the machine's boot, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def start_of(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if there is none. It tells apart processes with a reused id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # Z: a zombie, which has ended.
    return None if fields[0] == "Z" else fields[19]
