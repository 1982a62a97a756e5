"""The command of `make chaos`."""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tritonembed_perf.chaos.attackers import Attackers, all_attacks
from tritonembed_perf.chaos.campaign import Campaign, CampaignPlan
from tritonembed_perf.chaos.ledger import CampaignLedger, Harms
from tritonembed_perf.chaos.report import failures, make_report, summary
from tritonembed_perf.chaos.service import Service, running_service
from tritonembed_perf.chaos.watch import own_regions
from tritonembed_perf.failures import exit_on_sigterm
from tritonembed_perf.models import write_bert
from tritonembed_perf.options import output_file
from tritonembed_perf.reports import describe_environment, machine_line, write_report

_AROUND_S = 45.0
"""Seconds of --minutes that start, warm-up, last recovery and end take on two free cores."""
_LEAST_S = 12.0
_GROWTH = {2.0: 100.0, 10.0: 30.0, float("inf"): 2.0}
"""Allowed growth of memory in percent, by minutes. In a short campaign, code that is loaded late counts as growth."""
_ENDED_S = 10.0


@exit_on_sigterm()
def main() -> int:
    """Run a campaign. Exit code: 0 if it is good, 1 if a promise was not kept."""
    options = _parse()
    environment = describe_environment(["python", "-m", "tritonembed_perf.chaos", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    attacks = [attack for attack in all_attacks() if not any(word in attack.name for word in options.without)]
    attacks = [attack for attack in attacks if not options.only or any(word in attack.name for word in options.only)]
    harmed = max(_LEAST_S, 60 * options.minutes - _AROUND_S)
    plan = CampaignPlan(
        seed, harmed, min(60.0, max(4.0, harmed / 20)), options.callers, options.attackers, options.pause
    )
    print(f"seed {seed}, {len(attacks)} kinds of attacks, {harmed:.0f} s of harms", flush=True)
    ledger, harms = CampaignLedger(), Harms()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _write_model(Path(folder) / "model")
        with running_service(str(model), tuple(options.serve)) as service:
            print(f"{time.monotonic() - began:5.0f} s  ready", flush=True)
            campaign = Campaign(service, plan, Attackers(attacks, ledger, harms), ledger, harms)
            asyncio.run(campaign.run())
            service.manager.process.terminate()
            service.manager.process.wait(60)
            log = service.manager.read_log()
            left = _left(service)
    report = make_report(campaign, log, left)
    most_growth = options.memory_growth or next(bound for upto, bound in _GROWTH.items() if options.minutes <= upto)
    failed = failures(campaign, report, most_growth)
    print(summary(campaign, report))
    for line in failed:
        print(f"FAILED {line}")
    print(f"{time.monotonic() - began:.0f} s, {'not ' if failed else ''}good")
    if options.out:
        write_report(options.out, {**environment, "plan": vars(plan), "failures": failed, **report})
    if options.log:
        options.log.write_text(log)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="chaos", description="Kills, attacks and good callers against a real manager."
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="of the whole campaign, start and end included")
    parser.add_argument("--seed", type=int, help="what is harmed and sent; by default another one each time")
    parser.add_argument("--out", type=output_file, help="write the report to this file, as JSON")
    parser.add_argument("--log", type=output_file, help="write the manager's log to this file")
    parser.add_argument("--model", help="folder of a model; by default a small one with random weights is written")
    parser.add_argument("--callers", type=int, default=8, help="good callers, a quarter by each way in")
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two harms, about")
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="attacks with these in their name")
    parser.add_argument("--without", action="append", default=[], metavar="WORDS", help="none of these attacks")
    parser.add_argument("--memory-growth", type=float, metavar="PERCENT", help="that memory may grow by")
    parser.add_argument("--serve", action="append", default=[], metavar="OPTION", help="one more option of `serve`")
    return parser.parse_args()


def _write_model(folder: Path) -> Path:
    return write_bert(folder, layers=2, hidden=64, heads=2, intermediate=128, max_length=64)


def _left(service: Service) -> list[str]:
    """Names of the processes and regions that outlived the manager. Kills the processes."""
    until = time.monotonic() + _ENDED_S
    while (members := service.members()) and time.monotonic() < until:
        time.sleep(0.1)
    for member in members:
        os.kill(member.process.pid, 9)
    return [member.role for member in members] + [path.name for path in own_regions(service)]


if __name__ == "__main__":
    sys.exit(main())
