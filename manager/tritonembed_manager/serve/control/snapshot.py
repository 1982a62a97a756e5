"""The manager in one JSON object: what `/status`, the status page and `tritonembed-manager status` show.

{"type": "status", "version": str, "model": str, "policy": str, "time": unix seconds, "uptime_s": s, "draining": bool,
 "warnings": [str, …], "workers": {"count": n, "ready": n, "restarts": n},
 "totals": {"in_flight": n, "waiting": n, "requests": n, "errors": n, "rate": 1/s, "p50_ms": ms or null, "p99_ms": …,
            "ejections": n, "retries": n, "moves": n, "replicas": n, "ready": servers, "servers": n, "restarts": n},
 "servers": [{…ServerView.to_json(), "model": str, "for_s": s in this state, "in_flight": n, "work_bytes": n,
              "requests": n, "errors": n, "ejections": n, "rate": 1/s, "p50_ms": ms or null, "p99_ms": ms or null}, …]}
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.control.traffic import Traffic
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.model import ServerState


class Snapshots:
    """Makes them."""

    def __init__(
        self,
        roster: Roster,
        traffic: Traffic,
        table: LoadTable,
        *,
        model: str,
        policy: str,
        warnings: Sequence[str] = (),
    ) -> None:
        """warnings: what whoever runs it should know of its settings."""
        self._roster = roster
        self._traffic = traffic
        self._table = table
        self._fixed = {"type": "status", "version": _version(), "model": model, "policy": policy}
        self._warnings = list(warnings)
        self._model = model
        self._began = time.monotonic()

    def take(self, *, draining: bool, workers: dict[str, int]) -> dict[str, Any]:
        """As things are now."""
        now = time.monotonic()
        servers = [
            {
                **member.view().to_json(),
                "model": self._model,
                "for_s": round(now - member.since, 1),
                "in_flight": self._table.in_flight(member.slot),
                "work_bytes": self._table.work(member.slot),
                **asdict(self._traffic.of(member.id)),
            }
            for member in self._roster.members.values()
        ]
        in_flight = sum(server["in_flight"] for server in servers)
        ready = [server for server in servers if server["state"] == ServerState.READY.value]
        return {
            **self._fixed,
            "time": round(time.time(), 3),
            "uptime_s": round(now - self._began, 1),
            "draining": draining,
            "warnings": self._warnings,
            "workers": workers,
            "totals": {
                "in_flight": in_flight,
                "waiting": max(0, self._table.admitted() - in_flight),
                **asdict(self._traffic.in_all()),
                "retries": self._traffic.retries,
                "moves": self._traffic.moves,
                "replicas": sum(server["replicas"] for server in ready),
                "ready": len(ready),
                "servers": len(servers),
                "restarts": sum(server["restarts"] for server in servers),
            },
            "servers": servers,
        }


def _version() -> str:
    try:
        return metadata.version("tritonembed")
    except metadata.PackageNotFoundError:
        return "unknown"
