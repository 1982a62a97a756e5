"""`tritonembed-manager status`: shows the servers behind a running manager, as a table or as JSON."""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritonembed_manager.commands.options import with_options
from tritonembed_manager.errors import ManagerError, StartError, one_line_errors
from tritonembed_protocol.limits import ENDPOINT_HTTP_PORT
from tritonembed_protocol.printable import printable, printable_json

if TYPE_CHECKING:
    import ssl
    import urllib.error

    from rich.console import Group

_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "unhealthy": "red",
    "refused": "red",
    "failed": "bold red",
}
_NUMBERS = ("replicas", "in flight", "rate /s", "p50 ms", "p99 ms", "restarts")


def table(status: dict[str, Any]) -> "Group":
    """The status as a table for 80 columns.

    It has a row per server and one for all. Below follow tokens, errors and why a server is not ready.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    status = printable_json(status)
    rows = Table(box=None, pad_edge=False, show_footer=True)
    totals = status["totals"]
    # If there is not enough room, only the names are broken.
    rows.add_column("server", "in all", overflow="fold")
    rows.add_column("state", f"{totals['ready']} ready", no_wrap=True)
    for name, total in zip(_NUMBERS, _numbers(totals), strict=True):
        rows.add_column(name, total, justify="right", no_wrap=True)
    for server in status["servers"]:
        state = server["state"]
        rows.add_row(
            Text(server["id"]),
            Text(state, style=_STYLES.get(state, "")),
            *_numbers(server),
        )
    reasons = [f"{server['id']} is {server['state']}: {server['why']}" for server in status["servers"] if server["why"]]
    workers = status["workers"]
    draining = ", draining" if status["draining"] else ", ending (--lame-duck)" if status.get("lame_duck") else ""
    running = f"{workers['ready']} of {workers['count']} workers, up {_duration(status['uptime_s'])}{draining}"
    models = ", ".join(status.get("models", [status["model"]]))
    head = f"{models}: {status['policy']} over {totals['servers']} servers, {running}"
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in status.get("warnings", ())]
    lines = [
        *_of_all(totals),
        *_versions(status["servers"]),
        *_spaces(status["servers"]),
        *_qualities(status["servers"]),
        *reasons,
    ]
    return Group(Text(head), *warnings, rows, *map(Text, lines))


def _versions(servers: list[dict[str, Any]]) -> list[str]:
    """The versions of each model that has several, with their parts of the requests."""
    models: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for server in servers:
        models.setdefault(server.get("model", ""), {}).setdefault(server.get("version", ""), []).append(server)
    return [
        f"{model}: {own[0]['weight']:g} % to {version} ({', '.join(server['id'] for server in own)})"
        for model, versions in models.items()
        if len(versions) > 1
        for version, own in versions.items()
    ]


def _spaces(servers: list[dict[str, Any]]) -> list[str]:
    """The embedding space of all servers; if they differ, which servers have which."""
    having: dict[str, list[str]] = {}
    for server in servers:
        if server.get("space"):
            having.setdefault(server["space"], []).append(server["id"])
    if len(having) == 1:
        return [f"embedding space {next(iter(having))}"]
    return [f"embedding space {space}: {', '.join(ids)}" for space, ids in having.items()]


def _qualities(servers: list[dict[str, Any]]) -> list[str]:
    """What int8 keeps, per space: the least, should servers differ (they may have other processors)."""
    least: dict[str, float] = {}
    for server in servers:
        quality = server.get("quantization_quality")
        if quality is not None:
            least[server["space"]] = min(quality, least.get(server["space"], 1.0))
    return [f"{space} keeps {one:.4f} of the ten nearest of the calibration texts" for space, one in least.items()]


def _of_all(totals: dict[str, Any]) -> list[str]:
    """Totals without a column, because they would not fit into 80."""
    lines = [f"{totals['token_rate']:,.0f} tokens/s"] if totals.get("tokens") else []
    for whose in ("service", "client"):
        codes = totals.get(f"{whose}_errors", {})
        if codes:
            lines.append(f"{whose} errors: {', '.join(f'{code} {count:,}' for code, count in codes.items())}")
    return lines


def _numbers(counted: dict[str, Any]) -> list[str]:
    """The numbers of a server, or of all servers, in the order of `_NUMBERS`."""
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


_HTTPS = "https://"
_EVERY_S = 1.0
_TIMEOUT_S = 5.0
_REFUSED = (401, 403)
_MOST_BYTES = 10_000


@with_options
def status(
    manager: Annotated[
        str,
        typer.Option(
            f"127.0.0.1:{ENDPOINT_HTTP_PORT}", help="HTTP address of the manager, host:port, or https://host:port."
        ),
    ],
    tls_ca: Annotated[
        Path | None,
        typer.Option(None, help="The authorities to trust with https:// (PEM); by default those of the system."),
    ],
    tls_client_cert: Annotated[
        Path | None, typer.Option(None, help="Certificate to show to a manager that requires one (PEM).")
    ],
    tls_client_key: Annotated[Path | None, typer.Option(None, help="The key of --tls-client-cert (PEM).")],
    api_key: Annotated[
        str | None,
        typer.Option(None, help="Key of a tenant with `monitor` or `admin`, for a manager that requires one."),
    ],
    watch: Annotated[bool, typer.Option(False, help="Show it again every second, until Ctrl-C.")],
    as_json: Annotated[
        bool, typer.Option(False, "--json", help="All of it as one JSON object; with --watch, one per line.")
    ],
) -> None:
    """Show the servers: state, model, replicas, in flight, rate, latency, restarts."""
    with one_line_errors():
        ask = functools.partial(fetch, manager, api_key=api_key)
        if manager.startswith(_HTTPS):
            ask = functools.partial(ask, context=_context((tls_ca, tls_client_cert, tls_client_key)))
        if as_json:
            _print_json(ask, watch)
        elif watch:
            _watch(ask)
        else:
            from rich.console import Console

            Console().print(table(ask()))


def _context(files: tuple[Path | None, Path | None, Path | None]) -> "ssl.SSLContext":
    from tritonembed_manager.server.client_tls import ClientTls

    options = ("--tls-ca", "--tls-client-cert", "--tls-client-key")
    try:
        return ClientTls.read(files, options).context()
    except ValueError as error:
        raise StartError(str(error)) from None


def fetch(manager: str, context: "ssl.SSLContext | None" = None, api_key: str | None = None) -> dict[str, Any]:
    """The manager's status. context: for https://. Raises ManagerError if it does not answer."""
    import http.client
    import urllib.error
    import urllib.request

    from tritonembed_protocol.tls import CLOSES, tls_reason

    url = f"{manager if '://' in manager else f'http://{manager}'}/status"
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    try:
        # The manager is in the same network, so the proxy for the web is not used.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code in _REFUSED:
            raise ManagerError(f"the manager at {manager} refuses: {_reason(error)} (--api-key)") from None
        why = str(error.reason)
    except (http.client.RemoteDisconnected, ConnectionResetError):
        why = CLOSES
    except (json.JSONDecodeError, UnicodeDecodeError, http.client.BadStatusLine, http.client.LineTooLong):
        # The messages of these errors quote the received bytes, such as gRPC's, so they are not shown.
        why = "the program there is not a manager, or this is not its --http-port"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        why = tls_reason(str(reason)) or getattr(reason, "strerror", None) or str(reason)
    raise ManagerError(f"no manager answers at {manager}: {why}")


def _reason(error: "urllib.error.HTTPError") -> str:
    """The manager's own words."""
    try:
        return str(json.loads(error.read(_MOST_BYTES))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def _print_json(ask: Callable[[], dict[str, Any]], watch: bool) -> None:
    print(json.dumps(ask(), indent=None if watch else 2), flush=True)
    while watch:
        time.sleep(_EVERY_S)
        try:
            print(json.dumps(ask()), flush=True)
        except ManagerError as error:
            # The manager may be restarting: try again.
            print(f"tritonembed-manager: {printable(str(error))}", file=sys.stderr, flush=True)


def _watch(ask: Callable[[], dict[str, Any]]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(table(ask()), auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            try:
                live.update(table(ask()), refresh=True)
            except ManagerError as error:
                live.update(Text(printable(str(error)), style="red"), refresh=True)
