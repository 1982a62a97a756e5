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
_NUMBERS = ("replicas", "in flight", "rate /s", "p50 ms", "p99 ms", "restarts")


def table(status: dict[str, Any]) -> Group:
    """A row for each server, a last one for all of them, and why those are not ready that are not: for 80 columns."""
    rows = Table(box=None, pad_edge=False, show_footer=True)
    totals = status["totals"]
    # Where there is not enough room, only the names are broken.
    rows.add_column("server", "in all", overflow="fold")
    rows.add_column("state", f"{totals['ready']} ready", no_wrap=True)
    for name, total in zip(_NUMBERS, _numbers(totals), strict=True):
        rows.add_column(name, total, justify="right", no_wrap=True)
    for server in status["servers"]:
        state = server["state"]
        rows.add_row(
            server["id"],
            Text(state, style=_STYLES.get(state, "")),
            *_numbers(server),
        )
    reasons = [f"{server['id']} is {server['state']}: {server['why']}" for server in status["servers"] if server["why"]]
    workers = status["workers"]
    draining = ", draining" if status["draining"] else ""
    running = f"{workers['ready']} of {workers['count']} workers, up {_duration(status['uptime_s'])}{draining}"
    head = f"{status['model']}: {status['policy']} over {totals['servers']} servers, {running}"
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in status.get("warnings", ())]
    return Group(Text(head), *warnings, rows, *(Text(reason) for reason in reasons))


def _numbers(counted: dict[str, Any]) -> list[str]:
    """Of a server, or of all."""
    return [
        str(counted["replicas"]),
        str(counted["in_flight"]),
        f"{counted['rate']:.1f}",
        _ms(counted["p50_ms"]),
        _ms(counted["p99_ms"]),
        str(counted["restarts"]),
    ]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
