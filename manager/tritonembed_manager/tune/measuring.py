"""One attempt for real: render the candidate, start its server, run the loads against it."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager import repository
from tritonembed_manager.machine import usable_cores
from tritonembed_manager.settings import RenderSettings
from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.tune.attempts import Attempt, Run
from tritonembed_manager.tune.candidate import Candidate
from tritonembed_manager.tune.child import Child, wait
from tritonembed_manager.tune.load_process import WARM_UP_S, LoadJob
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_manager.tune.report import Stage
from tritonembed_manager.tune.server import CandidateFailedError, CandidateServer, ServerOptions, candidate_server

RUNS = 3
"""Runs of each load against one server: a median needs three."""
_GRACE_S = 60.0
"""What starting clients and answering the last requests may take in a run, on top of its seconds."""

_LAST_WORDS_S = 2.0
"""A server whose python process has died ends within this."""


@dataclass(frozen=True)
class Workbench:
    """Where and how candidates are measured."""

    settings: RenderSettings
    """The options that all candidates share."""
    default_batch_tokens: int
    """What the engine takes where model.json names no budget."""
    work: Path
    """A folder of ours."""
    options: ServerOptions
    seconds: float
    """Of one run."""
    requests: Mapping[LoadShape, list[bytes]]
    signals: SignalPipe

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
        runs: dict[str, list[Run]] = {}
        failure = None
        folder = self.work / "model_repository"
        options = self.options
        if limit < options.startup_timeout:
            options = dataclasses.replace(options, startup_timeout=limit, limited_by="--budget-minutes")
        try:
            repository.render(folder, self.rendering(candidate))
            with candidate_server(folder, options, self.signals, lambda: stage("starting")) as server:
                runs = self._run_loads(server, loads, stage)
                stage("stopping")
        except CandidateFailedError as error:
            failure = str(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Attempt(candidate, {} if failure else runs, failure, time.monotonic() - began)

    def _run_loads(self, server: CandidateServer, loads: Sequence[LoadShape], stage: Stage) -> dict[str, list[Run]]:
        prepared = [(load, self.requests[load]) for load in loads]
        job = LoadJob(server.target, prepared, RUNS, self.seconds, usable_cores())
        file = self.work / "load.json"
        file.write_text(job.to_json())
        runs: dict[str, list[Run]] = {str(load): [] for load in loads}
        total = RUNS * len(loads)
        deadline = time.monotonic() + total * (self.seconds + WARM_UP_S + _GRACE_S)
        with Child([sys.executable, "-m", "tritonembed_manager.tune.load_process", str(file)]) as clients:
            while (done := sum(map(len, runs.values()))) < total:
                stage(f"run {done + 1} of {total}")
                wait(self.signals)
                ended = clients.exit_code is not None
                lines = clients.new_lines()
                try:
                    _take(lines, runs)
                except CandidateFailedError:
                    # Where the server has died, its own reason says more than the errors of requests.
                    self._wait_for_end(server, _LAST_WORDS_S)
                    raise
                server.check()
                if ended and sum(map(len, runs.values())) < total:
                    raise CandidateFailedError("the clients of the load ended early")
                if time.monotonic() > deadline:
                    raise CandidateFailedError("the load did not end: the server does not answer")
        return runs

    def _wait_for_end(self, server: CandidateServer, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            server.check()
            wait(self.signals)


def _take(lines: Sequence[str], runs: dict[str, list[Run]]) -> None:
    """The load process's answers, among whatever else it wrote."""
    for line in lines:
        if not line.startswith('{"load"'):
            continue
        answer = json.loads(line)
        if "error" in answer:
            raise CandidateFailedError(answer["error"])
        runs[answer["load"]].append(Run(**answer["run"]))
