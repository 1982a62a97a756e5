"""The scenarios of perf/scenarios: which loads are run, on what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tritonembed_perf.failures import UsageError

PLACES = (Path(__file__).resolve().parents[1] / "scenarios", Path(__file__).resolve().parents[2] / "scenarios")
"""In a wheel, and in a checkout."""
FOLDER = next(filter(Path.is_dir, PLACES), PLACES[-1])
DEFAULTS = ("concurrency", "request-rate")
"""Those that fit a laptop as well."""

TARGETS = ("triton", "manager")
LOADS = ("concurrency", "request_rate")
FIELDS = {"description", "load", "values", "shapes", "targets", "window_seconds", "windows"}


@dataclass(frozen=True)
class Shape:
    """Sentences a request, of exactly so many tokens each."""

    tokens: int
    sentences: int

    @property
    def name(self) -> str:
        """50x64: tokens, then sentences."""
        return f"{self.tokens}x{self.sentences}"


@dataclass(frozen=True)
class Scenario:
    """Every shape under every value of the load, on every target.

    load: `concurrency` (requests in flight) or `request_rate` (requests a second, Poisson). A value is measured over
    `windows` windows of `window_seconds`.
    """

    name: str
    description: str
    load: str
    values: tuple[int, ...]
    shapes: tuple[Shape, ...]
    targets: tuple[str, ...]
    window_seconds: float
    windows: int


def load_scenarios(names: list[str]) -> list[Scenario]:
    """By name in perf/scenarios or by path; none given: DEFAULTS. Raises UsageError, which names file and field."""
    there = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    found = []
    for name in names or DEFAULTS:
        path = FOLDER / f"{name}.yaml" if name in there else Path(name)
        if not path.is_file():
            raise UsageError(f"--scenario: {name} is neither a file nor one of {', '.join(there) or 'none'}")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            raise UsageError(f"{path.name}: not YAML") from None
        found.append(read_scenario(path.stem, content))
    return found


def read_scenario(name: str, content: Any) -> Scenario:
    """Raises UsageError, which names the field."""
    if not isinstance(content, dict) or content.keys() - FIELDS or FIELDS - content.keys() - {"windows"}:
        raise UsageError(f"scenario {name}: its fields are {', '.join(sorted(FIELDS))}")

    def check(field: str, good: bool, rule: str) -> None:
        if not good:
            raise UsageError(f"scenario {name}: {field} must be {rule}")

    values, shapes, targets = content["values"], content["shapes"], content["targets"]
    check("load", content["load"] in LOADS, f"one of {', '.join(LOADS)}")
    check("values", _positive(values), "a list of whole numbers from 1 on")
    check("targets", isinstance(targets, list) and bool(targets) and set(targets) <= set(TARGETS), "triton, manager")
    sound = (
        isinstance(shapes, list)
        and bool(shapes)
        and all(
            isinstance(shape, dict) and shape.keys() == {"tokens", "sentences"} and _positive(list(shape.values()))
            for shape in shapes
        )
    )
    check("shapes", sound, "a list of {tokens: …, sentences: …}")
    seconds, windows = content["window_seconds"], content.get("windows", 3)
    check("window_seconds", isinstance(seconds, int | float) and 0.1 <= seconds <= 600, "seconds from 0.1 to 600")
    check("windows", _positive([windows]) and windows >= 3, "a whole number from 3 on")
    return Scenario(
        name,
        str(content["description"]),
        content["load"],
        tuple(values),
        tuple(Shape(**shape) for shape in shapes),
        tuple(targets),
        float(seconds),
        windows,
    )


def _positive(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is int and value > 0 for value in values)
