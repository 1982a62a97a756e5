"""tune.json: what was tried and decided, beside model.json. Triton loads folders only and leaves it alone."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.tune.attempts import Attempt, Ledger
from tritonembed_manager.tune.candidate import Candidate
from tritonembed_manager.tune.tune_options import Plan, TuneOptions
from tritonembed_manager.tune.verdict import Verdict

RECORD = "tune.json"


def write_record(
    options: TuneOptions, plan: Plan, searched: Ledger, checked: Ledger, written: Candidate, verdict: Verdict
) -> None:
    """Write OUT/tune.json, whole or not at all. Raises ManagerError when that fails."""
    from tritonembed_perf.machine import describe_machine

    comparison = verdict.comparison
    content = {
        "machine": describe_machine(),
        "device": options.settings.device,
        "seconds_per_run": options.seconds,
        "loads": list(map(str, plan.loads)),
        "second_load": str(plan.second),
        "tried_values": {name: list(values) for name, values in asdict(plan.space).items()},
        "defaults": asdict(plan.defaults),
        "written": asdict(written),
        "beats_defaults": verdict.beats_defaults,
        "decision": verdict.sentence,
        "gain_on_second_load": comparison and comparison.gain,
        "gain_needed": comparison and comparison.needed,
        "search": [_attempt(attempt) for attempt in searched.attempts],
        "check": [_attempt(attempt) for attempt in checked.attempts],
    }
    _write(options.out / RECORD, json.dumps(content, indent=2) + "\n")


def _attempt(attempt: Attempt) -> dict[str, Any]:
    runs = {load: [asdict(run) for run in runs] for load, runs in attempt.runs.items()}
    return {**asdict(attempt.candidate), "failure": attempt.failure, "seconds": round(attempt.seconds, 1), "runs": runs}


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}")
    try:
        scratch.write_text(text)
        os.replace(scratch, path)
    except OSError as error:
        raise ManagerError(f"{path.parent} is written, but not its {path.name}: {error.strerror}") from None
