"""What a worker tells its parent once a second, for `status` and the status page."""

from collections.abc import Sequence
from typing import Any

from tritonembed_manager.serve.meter import BOUNDS, Tallies, Tally
from tritonembed_manager.serve.server import Server

_MS = 1000.0


def stats_line(tallies: Tallies, in_flight: int, waiting: int, servers: Sequence[Server]) -> dict[str, Any]:
    """All counts are since the last line; in_flight and waiting are those of this moment.

    latencies: milliseconds, a fair sample of them. buckets: how many took up to each of `bounds` seconds, and one more.
    """
    at = {server.key: len(server.attempts) for server in servers}
    quiet = Tally()
    return {
        **_counts(tallies.total),
        "in_flight": in_flight,
        "waiting": waiting,
        "retries": tallies.retries,
        "moves": tallies.moves,
        "bounds": BOUNDS,
        "servers": {
            key: {**_counts(tallies.servers.get(key, quiet)), "in_flight": at.get(key, 0)}
            for key in (*at, *(key for key in tallies.servers if key not in at))
        },
    }


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "codes": {code.name: count for code, count in tally.codes.items()},
        "ejections": tally.ejections,
        "latencies": [round(seconds * _MS, 2) for seconds in tally.latencies],
        "buckets": tally.buckets,
    }
