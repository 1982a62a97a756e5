"""`make bench-quick`: has this project become slower? Under three minutes on two cores.

    python -m tritonembed_perf.quick [--update] [--limit SECONDS]

Requests through gRPC and the ensemble against sentence-transformers' `encode` in this process: same machine, model,
texts and precision, in turn, so that a busy machine slows both. Ratios are compared with those that were committed for
this kind of machine; exit code 1 when one of them is more than 20 % lower.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tritonembed_perf.models import write_preset
from tritonembed_perf.quick_baseline import (
    BASELINES,
    find_baseline,
    find_drops,
    kind_of,
    known_kinds,
    store_baseline,
    uneven_rounds,
)
from tritonembed_perf.quick_sides import measure
from tritonembed_perf.run.environment import describe_environment, machine_line
from tritonembed_perf.server import running_server
from tritonembed_perf.shape_load import ShapeLoad
from tritonembed_perf.termination import exit_on_sigterm

MODEL = "bert-6x384"

LOADS = (ShapeLoad(50, 64, 4), ShapeLoad(50, 1, 16))
"""The peer encodes the same requests one after the other, as it does in a program."""

LIMIT_S = 150.0
"""From the beginning to the end of the last round; where it is short there are fewer of them."""


@exit_on_sigterm()
def main() -> None:
    """Measure, print, compare; exit code 1 for a drop, and for ratios of a busy machine that --update would write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the ratios as this machine's baseline")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds; where they are short, fewer rounds")
    options = parser.parse_args()
    environment = describe_environment(["python", "-m", "tritonembed_perf.quick", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        write_preset(MODEL, folder)
        with running_server(folder, ["--device", "cpu", "--dtype", "float32"]) as server:
            rows = []
            for number, load in enumerate(LOADS):
                now = time.monotonic()
                share = (began + options.limit - now) / (len(LOADS) - number)
                rows.append(measure(server, folder, load, now + share))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(conclude(environment, rows, options.update, BASELINES))


def conclude(environment: dict[str, Any], rows: list[dict[str, Any]], update: bool, path: Path) -> int:
    """Say what the ratios mean, or store them; the exit code."""
    kind = kind_of(environment["machine"])
    ratios = {row["load"]: row["ratio"] for row in rows}
    uneven = uneven_rounds(rows)
    for line in uneven:
        print(f"the machine was busy: {line}")
    if update:
        if uneven:
            print(f"nothing is written to {path.name}: measure again on a quiet machine")
            return 1
        store_baseline(path, kind, {**environment, "ratios": ratios, "rows": rows})
        print(f"wrote the baseline of {kind} to {path.name}")
        return 0
    committed = find_baseline(path, kind)
    if committed is None:
        known = "; ".join(known_kinds(path)) or "no machine"
        print(f"nothing to compare with: there is no baseline of {kind}, only of {known} (--update writes one)")
        return 0
    dropped = find_drops(ratios, committed)
    print("\n".join(dropped) or f"no ratio is more than 20 % below the baseline of {kind}")
    return 1 if dropped else 0


if __name__ == "__main__":
    main()
