"""The ratios that `make bench-quick` compares with: one set per kind of machine.

A ratio of two programs depends on the processor: its matrix instructions, its caches, the number of cores. A figure of
another kind of machine says nothing about a change of the code.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BASELINES = Path(__file__).resolve().parents[2] / "results" / "quick-baseline.json"
ALLOWED_DROP = 0.20
UNEVEN = 0.10
"""If a side's best two rounds are further apart, perhaps not even the best one had the machine for itself."""


def conclude(environment: dict[str, Any], rows: list[dict[str, Any]], update: bool, path: Path) -> int:
    """Print what the ratios mean, or store them; the exit code."""
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
        known = "; ".join(sorted(_read(path))) or "no machine"
        print(f"nothing to compare with: there is no baseline of {kind}, only of {known} (--update writes one)")
        return 0
    dropped = find_drops(ratios, committed)
    print("\n".join(dropped) or f"no ratio is more than 20 % below the baseline of {kind}")
    return 1 if dropped else 0


def kind_of(machine: Mapping[str, Any]) -> str:
    """Processor and cores. machine: as `describe_machine` returns it."""
    return f"{machine['cpu']}, {machine['cores']} cores"


def find_baseline(path: Path, kind: str) -> dict[str, float] | None:
    """The ratios by load; None if none were committed for this kind."""
    found = _read(path).get(kind)
    return None if found is None else dict(found["ratios"])


def store_baseline(path: Path, kind: str, report: dict[str, Any]) -> None:
    """Beside those of other kinds, in the place of an older one of this kind."""
    path.write_text(json.dumps(_read(path) | {kind: report}, indent=1, sort_keys=True) + "\n")


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


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
