"""`tritonembed-manager status`: the servers behind a running manager."""

import json
import sys
import time
from typing import Annotated, Any

import typer

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.one_line import one_line_errors

_EVERY_S = 1.0
_TIMEOUT_S = 5.0

ManagerOption = Annotated[
    str,
    typer.Option("--manager", envvar="TRITONEMBED_MANAGER", help="HTTP address of the manager, host:port."),
]
Watch = Annotated[
    bool, typer.Option("--watch", envvar="TRITONEMBED_WATCH", help="Show it again every second, until Ctrl-C.")
]
AsJson = Annotated[
    bool,
    typer.Option("--json", envvar="TRITONEMBED_JSON", help="All of it as one JSON object; with --watch, one a line."),
]


def status(manager: ManagerOption = "127.0.0.1:8080", watch: Watch = False, as_json: AsJson = False) -> None:
    """Show the servers: state, model, replicas, in flight, rate, latency, restarts."""
    with one_line_errors():
        if as_json:
            _print_json(manager, watch)
        elif watch:
            _watch(manager)
        else:
            from rich.console import Console

            from tritonembed_manager.serve.control.status_table import table

            Console().print(table(fetch(manager)))


def fetch(manager: str) -> dict[str, Any]:
    """The manager's own words. Raises ManagerError, in one line, when it does not answer."""
    import http.client
    import urllib.error
    import urllib.request

    url = f"{manager if '://' in manager else f'http://{manager}'}/status"
    try:
        # The manager is near; a proxy meant for the web is not on the way.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(
            urllib.request.Request(url, headers={"Accept": "application/json"}), timeout=_TIMEOUT_S
        ) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (json.JSONDecodeError, UnicodeDecodeError, http.client.BadStatusLine, http.client.LineTooLong):
        # Their own words hold what came, such as the bytes of gRPC.
        why = "what listens there does not answer as a manager does on its --http-port"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        why = getattr(reason, "strerror", None) or str(reason)
    raise ManagerError(f"no manager answers at {manager}: {why}")


def _print_json(manager: str, watch: bool) -> None:
    print(json.dumps(fetch(manager), indent=None if watch else 2), flush=True)
    while watch:
        time.sleep(_EVERY_S)
        try:
            print(json.dumps(fetch(manager)), flush=True)
        except ManagerError as error:
            # It may be just restarting: keep asking.
            print(f"tritonembed-manager: {error}", file=sys.stderr, flush=True)


def _watch(manager: str) -> None:
    from rich.live import Live
    from rich.text import Text

    from tritonembed_manager.serve.control.status_table import table

    with Live(table(fetch(manager)), auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            try:
                live.update(table(fetch(manager)), refresh=True)
            except ManagerError as error:
                live.update(Text(str(error), style="red"), refresh=True)
