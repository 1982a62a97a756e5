"""One attempt for real: render the candidate, start its server, run the loads against it."""

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonembed_manager.server import repository
from tritonembed_manager.server.machine import usable_cores
from tritonembed_manager.server.run_folder import RunFolder
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_manager.server.tritonserver import Installation
from tritonembed_manager.tune.attempts import Attempt, Candidate, Run
from tritonembed_manager.tune.loadgen.clients import Interrupt, run_closed_loop
from tritonembed_manager.tune.loadgen.load import LoadError, Outcome
from tritonembed_manager.tune.loads import RUNS, WARM_UP_S, LoadShape
from tritonembed_manager.tune.output import Stage
from tritonembed_manager.tune.server import (
    CandidateFailedError,
    CandidateServer,
    ServerOptions,
    candidate_server,
    run_interruptible,
)

_GRACE_S = 60.0
"""What starting clients and answering the last requests may take in a run, on top of its seconds."""
_LAST_WORDS_S = 2.0
"""A server whose python process has died ends within this."""
_STAGE_EVERY_S = 0.2

_REQUESTS_PER_PROCESS = 171
"""About how many requests a client process keeps in flight before its own CPU is the limit."""
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
    """Of one run."""
    requests: Mapping[LoadShape, list[bytes]]

    def rendering(self, candidate: Candidate) -> RenderSettings:
        """What `repository.render` takes for a candidate; the default budget is left out, as it is without `tune`."""
        budget = candidate.max_batch_tokens
        return dataclasses.replace(
            self.settings,
            tokenizer_instances=candidate.tokenizer_instances,
            replicas=candidate.replicas,
            max_batch_tokens=None if budget == self.default_batch_tokens else budget,
        )

    def measure(self, candidate: Candidate, loads: Sequence[LoadShape], limit: float, stage: Stage) -> Attempt:
        """Every way in which a candidate can fail is an answer too. Raises Interrupted.

        limit: seconds until its server has to be ready.
        """
        began = time.monotonic()
        options = self.options
        if limit < options.startup_timeout:
            options = dataclasses.replace(options, startup_timeout=round(limit, 1), startup_limit="--budget-minutes")
        runs: dict[str, list[Run]] = {}
        failure = None
        try:
            repository.render(self.folder.path / "model_repository", self.rendering(candidate))
            runs = run_interruptible(self._attempt(options, loads, stage))
        except CandidateFailedError as error:
            failure = str(error)
        finally:
            shutil.rmtree(self.folder.path / "model_repository", ignore_errors=True)
        return Attempt(candidate, runs, failure, time.monotonic() - began)

    async def _attempt(self, options: ServerOptions, loads: Sequence[LoadShape], stage: Stage) -> dict[str, list[Run]]:
        doing = ["starting"]
        showing = asyncio.create_task(_keep_showing(stage, doing))
        rendered = self.folder.path / "model_repository"
        runs: dict[str, list[Run]] = {str(load): [] for load in loads}
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


async def run_load(server: CandidateServer, load: LoadShape, requests: Sequence[bytes], seconds: float) -> Run:
    """One run. Raises CandidateFailedError if the server breaks, requests fail or the load does not end."""
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
            # If the server has died, its own reason explains more than the errors of requests.
            await asyncio.wait({server.over}, timeout=_LAST_WORDS_S)
            server.check()
            raise CandidateFailedError(f"{load}: {error}" if isinstance(error, LoadError) else str(error)) from None
    finally:
        interrupt.abandoned = True
        await asyncio.gather(running, return_exceptions=True)


def figures(load: LoadShape, outcome: Outcome, seconds: float) -> Run:
    """The figures of a run. Raises CandidateFailedError if requests failed or none was answered."""
    if outcome.part.errors:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(outcome.part.errors.items()))
        raise CandidateFailedError(f"requests of {load} failed: {counts}")
    if not outcome.requests:
        raise CandidateFailedError(f"no request of {load} was answered within {seconds:g} s (--seconds)")
    rate = requests_per_second(outcome.part.latencies.tolist(), load.at_once)
    return Run(rate * load.sentences * load.tokens, outcome.latency_ms(50), outcome.latency_ms(99))


def client_processes(at_once: int, cores: int) -> int:
    """Enough processes that the clients are not the limit, and no more cores of the server's than needed."""
    wanted = max(-(-at_once // _REQUESTS_PER_PROCESS), min(4, cores // _CORES_PER_PROCESS), 1)
    return min(wanted, _MOST_PROCESSES, at_once)


def requests_per_second(latencies: Sequence[float], at_once: int) -> float:
    """The rate of a closed loop from its latencies in seconds (Little's law).

    A server answers in bursts, a batch at a time: counted in a short window, the requests would depend on how many
    bursts happen to end in it. Each client sends its next request at once, so that no time is lost between two.
    """
    return at_once / (sum(latencies) / len(latencies))
