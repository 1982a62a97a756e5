"""The status as a table for people."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "unhealthy": "red",
    "refused": "red",
    "failed": "bold red",
}
_COLUMNS = ("server", "state", "model", "replicas", "in flight", "rate", "p50", "p99", "restarts", "")
_NUMBERS = ("replicas", "in flight", "rate", "p50", "p99", "restarts")


def table(status: dict[str, Any]) -> Group:
    """A row for each server, and a last one for all of them."""
    rows = Table(box=None, pad_edge=False, show_footer=True)
    footers = _footers(status["totals"])
    for name in _COLUMNS:
        rows.add_column(
            name,
            footers.get(name, ""),
            justify="right" if name in _NUMBERS else "left",
            no_wrap=name not in ("model", ""),
        )
    for server in status["servers"]:
        state = server["state"]
        rows.add_row(
            server["id"],
            Text(state, style=_STYLES.get(state, "")),
            server["model"],
            str(server["replicas"]),
            str(server["in_flight"]),
            f"{server['rate']:.1f}/s",
            _ms(server["p50_ms"]),
            _ms(server["p99_ms"]),
            str(server["restarts"]),
            server["why"],
        )
    workers = status["workers"]
    draining = ", draining" if status["draining"] else ""
    running = f"{workers['ready']} of {workers['count']} workers, up {_duration(status['uptime_s'])}{draining}"
    head = f"{status['policy']} over {status['totals']['servers']} servers, {running}"
    return Group(Text(head), rows)


def _footers(totals: dict[str, Any]) -> dict[str, str]:
    return {
        "server": "in all",
        "state": f"{totals['ready']} ready",
        "replicas": str(totals["replicas"]),
        "in flight": str(totals["in_flight"]),
        "rate": f"{totals['rate']:.1f}/s",
        "p50": _ms(totals["p50_ms"]),
        "p99": _ms(totals["p99_ms"]),
        "restarts": str(totals["restarts"]),
    }


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
