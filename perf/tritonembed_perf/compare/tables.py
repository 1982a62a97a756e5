"""A comparison's results as tables: for a terminal, and in Markdown."""

from collections.abc import Sequence
from typing import Any

from tritonembed_perf.compare.results import Result, Sample
from tritonembed_perf.compare.trials import Trial
from tritonembed_perf.reports import print_table

OURS = "tritonembed"
HEADER = ("system", "tokens/s", "least – most", "requests/s", "p50 ms", "p99 ms", f"{OURS} is", "failed / wrong")


def rows_of(trial: Trial, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A row for each system, the fastest first, of an open loop the least p99; without figures the reason."""
    ours = _ours(trial, results)
    ranked = sorted(results, key=lambda result: _rank(trial, result.of(trial)))
    return [_row(result, trial, ours) for result in ranked]


def _row(result: Result, trial: Trial, ours: Sample | None) -> tuple[str, ...]:
    sample = result.of(trial)
    if sample is None:
        why = result.why_not or ("no offered rate in process" if _is_idle(result, trial) else "not measured")
        return (result.system, "–", why, "", "", "", "", "")
    samples = result.rounds[trial.name]
    speeds = [one.tokens_per_second for one in samples]
    ratio = f"{ours.tokens_per_second / sample.tokens_per_second:.2f} x" if ours and sample.tokens_per_second else "–"
    if result.system == OURS or trial.rate is not None:
        ratio = ""
    return (
        result.system + (" *" if any(one.client_saturated for one in samples) else ""),
        f"{sample.tokens_per_second:,.0f}",
        f"{min(speeds):,.0f} – {max(speeds):,.0f}",
        f"{sample.requests_per_second:,.1f}",
        f"{sample.p50_ms:,.1f}",
        f"{sample.p99_ms:,.1f}",
        ratio,
        f"{sum(one.errors for one in samples)} / {sum(one.wrong for one in samples)}",
    )


def _is_idle(result: Result, trial: Trial) -> bool:
    """Whether it had its turn, but has no offered rate."""
    return trial.rate is not None and trial.name in result.rounds


def show(trials: Sequence[Trial], results: Sequence[Result]) -> None:
    """On standard output."""
    for trial in trials:
        print_table(HEADER, rows_of(trial, results), left=(0, 2), title=trial.name)
    for line in [*verdicts(trials, results), *remarks(results)]:
        print(line)


def markdown(report: dict[str, Any], trials: Sequence[Trial], results: Sequence[Result]) -> str:
    """The same for a page. report: as reports.py has it."""
    lines = [f"{report['model']}, {report['dtype']} on {report['device']}", ""]
    for run in report["runs"]:
        ended = "; interrupted" if run["interrupted"] else ""
        lines += [f"{run['machine_line']}, {run['when']}{ended}", "", f"    {run['command']}", ""]
    for trial in trials:
        lines += [f"**{trial.name}**", "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
        lines += [f"| {' | '.join(row)} |" for row in rows_of(trial, results)]
        lines.append("")
    lines += [f"- {line}" for line in [*verdicts(trials, results), *remarks(results)]]
    return "\n".join(lines) + "\n"


def verdicts(trials: Sequence[Trial], results: Sequence[Result]) -> list[str]:
    """A line for each load and system that is faster."""
    lines = []
    for trial in trials:
        ours = _ours(trial, results)
        for result in results:
            theirs = result.of(trial)
            if ours is None or theirs is None or result.system.startswith(OURS) or trial.rate is not None:
                continue
            if theirs.tokens_per_second > ours.tokens_per_second:
                faster = theirs.tokens_per_second / max(ours.tokens_per_second, 1e-9)
                lines.append(f"{trial.name}: {result.system} is faster than {OURS}: {faster:.2f} x")
    return lines


def remarks(results: Sequence[Result]) -> list[str]:
    """Each system's flags, notes and troubles."""
    lines = []
    for result in results:
        note = f" ({result.note})" if result.note else ""
        if result.why_not and not result.rounds:
            lines.append(f"{result.system}{note}: {result.why_not}")
            continue
        flags: dict[str, list[str]] = {}
        for trial, config in result.chosen.items():
            flags.setdefault(config, []).append(trial)
        chosen = "; ".join(f"`{text}` for {', '.join(names)}" for text, names in flags.items())
        lines.append(f"{result.system}{note}: {chosen or 'not measured'}")
        tried = [config for config in result.sweep if config not in flags]
        if tried:
            lines.append(f"{result.system}: no better were {', '.join(f'`{config}`' for config in tried)}")
        lines += [f"{result.system}: {trouble}" for trouble in [*result.troubles, *result.faults]]
    if any(one.client_saturated for result in results for one in result.every_sample):
        lines.append("* the client's own CPU was saturated in some round: the system may do more")
    return lines


def _ours(trial: Trial, results: Sequence[Result]) -> Sample | None:
    return next((result.of(trial) for result in results if result.system == OURS), None)


def _rank(trial: Trial, sample: Sample | None) -> float:
    if sample is None:
        return float("inf")
    return sample.p99_ms if trial.rate is not None else -sample.tokens_per_second
