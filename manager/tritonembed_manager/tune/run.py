"""`tritonembed-manager tune`: a tuning, from the first trial to the verdict and the folder that it writes.

A trial renders its candidate, starts the candidate's server, and runs the loads against it.
"""

import asyncio
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.server import repository
from tritonembed_manager.server.machine import check_gpu, raise_limit, usable_cores
from tritonembed_manager.server.repository import check_model
from tritonembed_manager.server.run_folder import RunFolder, run_folder
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_manager.server.signals import uninterruptible
from tritonembed_manager.server.tritonserver import Installation, find_tritonserver
from tritonembed_manager.tune.loadgen.clients import Interrupt, run_closed_loop
from tritonembed_manager.tune.loadgen.load import LoadError, LoadResult
from tritonembed_manager.tune.loads import RUNS, WARM_UP_S, LoadShape, RequestMaker
from tritonembed_manager.tune.output import Stage, Table, TuneProgress, describe, gains_over, write_record
from tritonembed_manager.tune.plan import TunePlan, TuneSettings, make_plan
from tritonembed_manager.tune.search import TRIALS, Search, TuneVerdict, check_choice, no_gain
from tritonembed_manager.tune.server import (
    CandidateFailedError,
    CandidateServer,
    ServerOptions,
    candidate_server,
    run_interruptible,
)
from tritonembed_manager.tune.trials import Candidate, CandidateTrial, LoadRun, TrialLedger

_GRACE_S = 60.0
"""Seconds that a run may take beyond its measured time, to start clients and to answer the last requests."""
_LAST_WORDS_S = 2.0
"""Seconds within which a server ends if its python process has died."""
_STAGE_EVERY_S = 0.2

_REQUESTS_PER_PROCESS = 171
"""About how many requests a client process can keep in flight before its own CPU is the limit."""
_CORES_PER_PROCESS = 4
_MOST_PROCESSES = 6


@dataclass(frozen=True)
class Workbench:
    """Where and how candidates are measured."""

    settings: RenderSettings
    """The options that all candidates share."""
    default_batch_tokens: int
    """The engine's budget if model.json names none."""
    folder: RunFolder
    installation: Installation
    options: ServerOptions
    seconds: float
    """Seconds of one run."""
    requests: Mapping[LoadShape, list[bytes]]

    def rendering(self, candidate: Candidate) -> RenderSettings:
        """The arguments of `repository.render` for a candidate; without the default budget, as without `tune`."""
        budget = candidate.max_batch_tokens
        return dataclasses.replace(
            self.settings,
            tokenizer_instances=candidate.tokenizer_instances,
            replicas=candidate.replicas,
            max_batch_tokens=None if budget == self.default_batch_tokens else budget,
        )

    def measure(self, candidate: Candidate, loads: Sequence[LoadShape], limit: float, stage: Stage) -> CandidateTrial:
        """Measure a candidate, whose failure is a result, too. Raises Interrupted.

        limit: seconds until its server has to be ready.
        """
        began = time.monotonic()
        options = self.options
        if limit < options.startup_timeout:
            options = dataclasses.replace(options, startup_timeout=round(limit, 1), startup_limit="--budget-minutes")
        runs: dict[str, list[LoadRun]] = {}
        failure = None
        try:
            repository.render(self.folder.path / "model_repository", self.rendering(candidate))
            runs = run_interruptible(self._trial(options, loads, stage))
        except CandidateFailedError as error:
            failure = str(error)
        finally:
            shutil.rmtree(self.folder.path / "model_repository", ignore_errors=True)
        return CandidateTrial(candidate, runs, failure, time.monotonic() - began)

    async def _trial(
        self, options: ServerOptions, loads: Sequence[LoadShape], stage: Stage
    ) -> dict[str, list[LoadRun]]:
        doing = ["starting"]
        showing = asyncio.create_task(_keep_showing(stage, doing))
        rendered = self.folder.path / "model_repository"
        runs: dict[str, list[LoadRun]] = {str(load): [] for load in loads}
        try:
            async with candidate_server(rendered, options, self.installation, self.folder) as server:
                for number, load in enumerate(list(loads) * RUNS, 1):
                    doing[0] = f"run {number} of {RUNS * len(loads)}"
                    runs[str(load)].append(await run_load(server, load, self.requests[load], self.seconds))
                doing[0] = "stopping"
        finally:
            showing.cancel()
        return runs


async def _keep_showing(stage: Stage, doing: Sequence[str]) -> None:
    while True:
        stage(doing[-1])
        await asyncio.sleep(_STAGE_EVERY_S)


async def run_load(server: CandidateServer, load: LoadShape, requests: Sequence[bytes], seconds: float) -> LoadRun:
    """A run. Raises CandidateFailedError if the server breaks, requests fail or the load does not end."""
    interrupt = Interrupt()
    processes = client_processes(load.at_once, usable_cores())
    running = asyncio.create_task(
        asyncio.to_thread(
            run_closed_loop, server.target, requests, load.at_once, processes, seconds, WARM_UP_S, interrupt
        )
    )
    limit = seconds + WARM_UP_S + _GRACE_S
    try:
        await asyncio.wait({running, server.over}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        server.check()
        if not running.done():
            raise CandidateFailedError("the load did not end: the server does not answer")
        try:
            return figures(load, running.result(), seconds)
        except (LoadError, CandidateFailedError) as error:
            # If the server has died, its own reason says more than the errors of requests.
            await asyncio.wait({server.over}, timeout=_LAST_WORDS_S)
            server.check()
            raise CandidateFailedError(f"{load}: {error}" if isinstance(error, LoadError) else str(error)) from None
    finally:
        interrupt.abandoned = True
        await asyncio.gather(running, return_exceptions=True)


def figures(load: LoadShape, outcome: LoadResult, seconds: float) -> LoadRun:
    """The figures of a run. Raises CandidateFailedError if requests failed or none was answered."""
    if outcome.samples.errors:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(outcome.samples.errors.items()))
        raise CandidateFailedError(f"requests of {load} failed: {counts}")
    if not outcome.requests:
        raise CandidateFailedError(f"no request of {load} was answered within {seconds:g} s (--seconds)")
    rate = requests_per_second(outcome.samples.latencies.tolist(), load.at_once)
    return LoadRun(rate * load.sentences * load.tokens, outcome.latency_ms(50), outcome.latency_ms(99))


def client_processes(at_once: int, cores: int) -> int:
    """Enough processes that clients are not the limit, and no more of the server's cores than needed."""
    wanted = max(-(-at_once // _REQUESTS_PER_PROCESS), min(4, cores // _CORES_PER_PROCESS), 1)
    return min(wanted, _MOST_PROCESSES, at_once)


def requests_per_second(latencies: Sequence[float], at_once: int) -> float:
    """The rate of a closed loop from its latencies in seconds (Little's law).

    A server answers in bursts, a batch at a time: a count of requests in a short window would depend on the number of
    bursts that end in it. Each client sends its next request at once, so no time is lost between requests.
    """
    return at_once / (sum(latencies) / len(latencies))


if TYPE_CHECKING:
    from tritonembed_engine.model.files import ModelFiles

MeasureLoads = Callable[[Candidate, Sequence[LoadShape], float, Stage], CandidateTrial]
"""Measures a candidate under loads; the number is the seconds until its server has to be ready."""


@dataclass
class Session:
    """A tuning, and all that it has measured."""

    plan: TunePlan
    measure: MeasureLoads
    title: str
    """The heading of the search's table."""
    ends: float
    """When the budget ends, on the monotonic clock."""
    table: Table
    progress: TuneProgress
    searched: TrialLedger = field(default_factory=TrialLedger)
    checked: TrialLedger = field(default_factory=TrialLedger)

    def run(self) -> tuple[Candidate, TuneVerdict]:
        """The candidate to write, and why. Raises ManagerError if no server works, Interrupted at a stop signal."""
        plan = self.plan
        self.table.title(self.title)
        search = Search(plan.space, plan.defaults, self._search_trial, self._time_for_more, self.searched)
        self._search = search
        choice = search.run()
        if not self.searched.works(choice):
            raise ManagerError(f"no server worked; with the defaults: {self.searched.failure(plan.defaults)}")
        verdict = self._judge(choice)
        return (choice if verdict.beats_defaults else plan.defaults), verdict

    def _judge(self, choice: Candidate) -> TuneVerdict:
        defaults = self.plan.defaults
        if choice == defaults:
            return no_gain(self._search)
        second = str(self.plan.second)
        self.table.title(f"Check on a second load: {second}, the defaults and the choice in turn")
        verdict = check_choice(choice, defaults, second, self._check_trial, self._time_for_one, self.checked)
        if verdict.beats_defaults or self.searched.works(defaults) or self.checked.works(defaults):
            return verdict
        # The defaults have never worked, so there is nothing to keep.
        reason = self.searched.failure(defaults)
        if self.checked.failure(choice) is not None:
            raise ManagerError(f"{verdict.sentence.partition(';')[0]}, and the defaults do not work: {reason}")
        return TuneVerdict(
            True, f"the defaults do not work here ({reason}); the choice does, unchecked on a second load"
        )

    def _search_trial(self, candidate: Candidate) -> CandidateTrial:
        to_come = self._search.untried() + TRIALS
        return self._trial(candidate, self.plan.loads, self.searched, to_come)

    def _check_trial(self, candidate: Candidate) -> CandidateTrial:
        return self._trial(candidate, [self.plan.second], self.checked, TRIALS - len(self.checked.trials))

    def _trial(
        self, candidate: Candidate, loads: Sequence[LoadShape], ledger: TrialLedger, to_come: int
    ) -> CandidateTrial:
        mean = ledger.mean_seconds() or self.searched.mean_seconds()
        left, how_sure = (min(to_come * mean, self._left()), "about") if mean else (self._left(), "at most")
        self.progress.begin(describe(candidate, self.plan.defaults), left, how_sure)
        trial = self.measure(candidate, loads, max(self._left(), 1.0), self.progress.stage)
        self.progress.clear()
        # Earlier trials only: the first row of the defaults has nothing to be compared with.
        self.table.row(trial, gains_over(trial, ledger.rates(self.plan.defaults)))
        return trial

    def _time_for_more(self) -> bool:
        """Whether there is time for another trial and, after it, for the check on the second load."""
        return self._left() > (1 + TRIALS) * self.searched.mean_seconds()

    def _time_for_one(self) -> bool:
        return self._left() > self.searched.mean_seconds()

    def _left(self) -> float:
        return self.ends - time.monotonic()


def run_tune(options: TuneSettings) -> None:
    """Measure, write OUT and OUT/tune.json, and print the decision.

    Raises StartError for wrong options, and ManagerError if no candidate works; OUT is then as it was.
    """
    if options.settings.device == "cuda":
        check_gpu("--device cuda")
    raise_limit()
    ends = time.monotonic() + options.budget_minutes * 60
    with run_folder() as run:
        installation = find_tritonserver(options.server.tritonserver, run.path)
        files, default_batch_tokens = _model(options)
        plan = make_plan(options, files, default_batch_tokens)
        progress = TuneProgress()
        progress.begin("preparing the load", None)
        maker = RequestMaker(files)
        requests = {load: maker.requests("--load", load) for load in plan.loads}
        requests[plan.second] = maker.requests("--second-load", plan.second)
        bench = Workbench(
            settings=options.settings,
            default_batch_tokens=default_batch_tokens,
            folder=run,
            installation=installation,
            options=options.server,
            seconds=options.seconds,
            requests=requests,
        )
        title = f"{' '.join(map(str, plan.loads))}, {RUNS} runs of {options.seconds:g} s each"
        if plan.limited:
            title = f"The defaults, as far as the given lists allow: {plan.defaults}\n{title}"
        session = Session(plan, bench.measure, title, ends, Table(sys.stdout), progress)
        try:
            written, verdict = session.run()
        finally:
            progress.clear()
        with uninterruptible():
            repository.render(options.out, bench.rendering(written), force=options.force)
            write_record(options, plan, session.searched, session.checked, written, verdict)
    print(f"{verdict.sentence[0].upper()}{verdict.sentence[1:]}.")
    print(f"Written: {describe(written, plan.defaults)}")
    print(repository.tritonserver_line(options.out))


def _model(options: TuneSettings) -> tuple["ModelFiles", int]:
    """The model's files, and the default budget of a batch in tokens."""
    try:
        import tokenizers  # noqa: F401

        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.executors.loading import max_batch_tokens
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.settings import ModelSettings
    except ImportError as error:
        raise StartError(f"tune runs where the server does; {error.name} is not installed here") from None
    settings = options.settings
    model = settings.model, settings.vllm.get("revision"), settings.vllm.get("max_model_len")
    check_model(*model)
    try:
        files = read_model_files(*model)
    except ModelError as error:
        raise StartError(f"--model: {error}") from None
    if files.classifier is not None:
        raise StartError(f"--model: {files.name} scores texts; tune measures embedding models")
    return files, max_batch_tokens(ModelSettings(model=settings.model), files, settings.device)
