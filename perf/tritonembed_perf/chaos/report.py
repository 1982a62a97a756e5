"""The report of a campaign: what it found, and which findings are failures."""

from collections import defaultdict
from typing import Any

from tritonembed_perf.chaos.attack import CANARY
from tritonembed_perf.chaos.campaign import Campaign
from tritonembed_perf.chaos.ledger import percentile
from tritonembed_perf.chaos.watch import growth

WORKER_MIB = 1536
"""MiB that a worker may have at most, whatever requests arrive."""
_CONTROL = frozenset(chr(code) for code in range(32)) - {"\n", "\t"}


def make_report(campaign: Campaign, log: str, left: list[str]) -> dict[str, Any]:
    """log: the manager's log. left: names of the processes and regions that outlived the manager."""
    return {
        **campaign.ledger.to_json(),
        "harms": _harms(campaign),
        "recovered": campaign.recovered,
        "memory": {
            "start": campaign.start,
            "end": campaign.end,
            "growth_percent": growth(campaign.start, campaign.end),
        },
        "log": _log_faults(log),
        "left_running": left,
    }


def failures(campaign: Campaign, report: dict[str, Any], most_growth: float) -> list[str]:
    """One line for each promise that was not kept. most_growth: allowed growth of PSS in all, in percent."""
    ledger = campaign.ledger
    found = []
    if ledger.wrong:
        found.append(f"{ledger.wrong} answers had wrong vectors")
    if ledger.lost:
        found.append(f"{ledger.lost} good requests were lost")
    if not ledger.answered:
        found.append("no good request was answered")
    if ledger.unexpected:
        found.append(f"attacks ended as none may: {dict(ledger.unexpected)}")
    if ledger.uncaused:
        found.append(f"started again without a harm: {dict(ledger.uncaused)}")
    if not campaign.recovered:
        found.append("not everything was ready again at the end")
    grown = report["memory"]["growth_percent"]["in all"]
    if grown > most_growth:
        found.append(f"memory grew by {grown} % (at most {most_growth:g} %)")
    regions = [report["memory"][when]["shm_regions"] for when in ("start", "end")]
    if regions[1] > regions[0]:
        found.append(f"regions in /dev/shm: {regions[0]} at the start, {regions[1]} at the end")
    if ledger.highest_worker_mib > WORKER_MIB:
        found.append(f"a worker had {ledger.highest_worker_mib:.0f} MiB (at most {WORKER_MIB})")
    if report["log"]["with_a_request's_words"] or report["log"]["with_control_bytes"] or report["log"]["tracebacks"]:
        found.append(f"the log: {report['log']}")
    if report["left_running"]:
        found.append(f"left behind: {', '.join(report['left_running'])}")
    return found


def summary(campaign: Campaign, report: dict[str, Any]) -> str:
    """The report as text, in a few lines."""
    ledger = campaign.ledger
    memory = report["memory"]
    lines = [
        f"good requests: {ledger.sent} sent, {ledger.answered} answered, {ledger.lost} lost, {ledger.documented} lost "
        f"within documented limits, {ledger.wrong} wrong",
        *(f"  {name}: {_line(way)}" for name, way in report["good"].items()),
        f"attacks: {ledger.attacked}; {report['attacks']['outcomes']}",
        *(
            f"harms: {harm['count']} x {kind}, recovered in {harm['recovery_s']['p50']} s (at most "
            f"{harm['recovery_s']['max']} s)"
            for kind, harm in report["harms"].items()
        ),
        f"restarts: {report['restarts']}",
        f"memory: {memory['start']['pss_mib_in_all']} MiB at the start, {memory['end']['pss_mib_in_all']} at the end "
        f"({memory['growth_percent']} %), a worker at most {report['highest_worker_mib']} MiB",
        f"descriptors: {memory['start']['descriptors']}, {memory['end']['descriptors']} at the end",
        f"threads: {memory['start']['threads']}, {memory['end']['threads']} at the end",
        f"/dev/shm: {memory['start']['shm_regions']} regions of {memory['start']['shm_mib']} MiB, "
        f"{memory['end']['shm_regions']} of {memory['end']['shm_mib']} MiB at the end",
        f"log: {report['log']}",
    ]
    return "\n".join(lines)


def _line(way: dict[str, Any]) -> str:
    retried = way["retried_after_a_worker_was_harmed"]
    lost = way["lost_within_documented_limits"]
    missing = way["lost"]
    return (
        f"{way['answered']} of {way['sent']} answered, {way['sentences']} sentences, {way['latency_ms']}"
        f"{f', {retried} when sent once more' if retried else ''}{f', {lost}' if lost else ''}"
        f"{f', LOST {missing}' if missing else ''}"
    )


def _harms(campaign: Campaign) -> dict[str, Any]:
    times: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for harm in campaign.harms.all:
        counts[harm.kind] += 1
        if harm.recovery_s is not None:
            times[harm.kind].append(harm.recovery_s)
    found = {}
    for kind in sorted(counts):
        sorted_times = sorted(times[kind])
        middle = percentile(sorted_times, 50)
        found[kind] = {
            "count": counts[kind],
            "recovered": len(sorted_times),
            "recovery_s": {
                "p50": None if middle is None else round(middle / 1000, 1),
                "max": round(sorted_times[-1], 1) if sorted_times else None,
            },
        }
    return found


def _log_faults(log: str) -> dict[str, int]:
    lines = log.splitlines()
    return {
        "lines": len(lines),
        "with_a_request's_words": sum(CANARY in line for line in lines),
        "with_control_bytes": sum(not _CONTROL.isdisjoint(line) for line in log.split("\n")),
        "tracebacks": sum("Traceback (most recent call last)" in line for line in lines),
    }
