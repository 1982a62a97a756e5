"""The ratios that `make bench-quick` compares with: one set per kind of machine.

A ratio of two programs depends on the processor: its matrix instructions, its caches, the number of cores. A figure of
another kind of machine says nothing about a change of the code.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import BenchError

BASELINES = Path(__file__).resolve().parents[2] / "results" / "quick-baseline.json"
ALLOWED_DROP = 0.20
UNEVEN = 0.10
"""If a side's best two rounds are further apart, perhaps not even the best one had the machine for itself."""


def conclude(environment: Mapping[str, Any], rows: list[dict[str, Any]], update: bool, path: Path) -> None:
    """Print what the ratios mean, or store them in the place of older ones of this kind of machine.

    environment: as `describe_environment` returns it. Raises BenchError for a drop, and for rounds of a busy machine
    that would be stored.
    """
    machine = environment["machine"]
    kind = f"{machine['cpu']}, {machine['cores']} cores"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ratios = {row["load"]: row["ratio"] for row in rows}
    uneven = uneven_rounds(rows)
    for line in uneven:
        print(f"the machine was busy: {line}")
    if update:
        if uneven:
            raise BenchError(f"nothing is written to {path.name}: measure again on a quiet machine")
        known[kind] = {**environment, "ratios": ratios, "rows": rows}
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(f"wrote the baseline of {kind} to {path.name}")
    elif kind not in known:
        others = "; ".join(sorted(known)) or "no machine"
        print(f"nothing to compare with: there is no baseline of {kind}, only of {others} (--update writes one)")
    elif dropped := find_drops(ratios, known[kind]["ratios"]):
        raise BenchError("; ".join(dropped))
    else:
        print(f"no ratio is more than 20 % below the baseline of {kind}")


def find_drops(ratios: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is more than ALLOWED_DROP below the committed one."""
    return [
        f"{name}: {ratio:.2f} x is {1 - ratio / committed[name]:.0%} below the committed {committed[name]:.2f} x"
        for name, ratio in ratios.items()
        if name in committed and ratio < committed[name] * (1 - ALLOWED_DROP)
    ]


def uneven_rounds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each side of each load whose best two rounds differ by more than UNEVEN."""
    lines = []
    for row in rows:
        for side in ("ours", "sentence_transformers"):
            *_, second, best = sorted(row[side])
            if second < best * (1 - UNEVEN):
                name = side.replace("_", "-")
                lines.append(f"{row['load']}, {name}: the best rounds are {second:,.0f} and {best:,.0f} sentences/s")
    return lines
