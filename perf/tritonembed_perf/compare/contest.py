"""The order of a comparison: each peer is swept, then all are measured in turn, round after round."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tritonembed_manager.tune.loadgen.clients import Interrupt
from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.compare.launching import DidNotStartError
from tritonembed_perf.compare.measuring import InterruptedMeasurement, take_sample
from tritonembed_perf.compare.peer import Bench, CannotRunError, Config, Endpoint, Peer
from tritonembed_perf.compare.results import Result, Sample
from tritonembed_perf.compare.trials import Materials, Trial
from tritonembed_perf.reports import without_paths

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """closed: closed loops, which the sweep is about too. offered: open loops; replicas: counts to compare.

    rounds: 0 if the sweep's own samples are the figures; sweep_seconds: 0 for no sweep. Not both.
    swept: an earlier comparison's results by system; its choice is taken instead of a sweep.
    """

    closed: Sequence[Trial]
    offered: Sequence[Trial]
    replicas: Sequence[int]
    rounds: int
    seconds: float
    sweep_seconds: float
    warm_up: float
    processes: int | None = None
    swept: Mapping[str, Result] = field(default_factory=dict)


@dataclass
class Entry:
    """A peer, its chosen configurations, and its result so far."""

    peer: Peer
    result: Result
    chosen: dict[Trial, Config] = field(default_factory=dict)


class Contest:
    """Runs the plan; `results` can be read at any time, also after an interruption."""

    def __init__(self, bench: Bench, peers: Sequence[Peer], plan: Plan, materials: Materials, log: Log) -> None:
        self._entries = [Entry(peer, Result(peer.name)) for peer in peers]
        self._bench = bench
        self._plan = plan
        self._materials = materials
        self._log = log
        self._interrupt = Interrupt()

    @property
    def results(self) -> list[Result]:
        """One per peer, in the order of the peers."""
        return [entry.result for entry in self._entries]

    def run(self) -> bool:
        """Run everything. False if Ctrl-C ended it early."""
        try:
            for entry in self._entries:
                self._prepare(entry)
            for entry in self._running():
                self._sweep(entry)
            for number in range(self._plan.rounds):
                self._log(f"round {number + 1} of {self._plan.rounds}")
                for entry in self._running():
                    self._measure(entry)
                    self._measure_replicas(entry)
        except (InterruptedMeasurement, KeyboardInterrupt):
            return False
        return True

    def _running(self) -> Iterator[Entry]:
        return (entry for entry in self._entries if not entry.result.why_not)

    def _prepare(self, entry: Entry) -> None:
        self._log(f"{entry.peer.name}: preparing")
        try:
            entry.peer.prepare(self._bench)
        except CannotRunError as error:
            entry.result.why_not = without_paths(str(error))
            self._log(f"{entry.peer.name}: {error}")
        entry.result.note = entry.peer.note

    def _sweep(self, entry: Entry) -> None:
        configs = entry.peer.configs(self._bench)
        result = entry.result
        if earlier := self._chosen_before(entry, configs):
            self._choose(entry, earlier)
            return
        if self._plan.rounds and (self._plan.sweep_seconds <= 0 or len(configs) == 1):
            self._choose(entry, dict.fromkeys(self._plan.closed, configs[0]))
            return
        best: dict[Trial, tuple[float, Config]] = {}
        for config in configs:
            for trial, sample in self._run_trials(entry, config, self._plan.closed, self._plan.sweep_seconds):
                result.sweep.setdefault(config.text, {})[trial.name] = sample
                # A configuration that fails requests or answers wrongly can't be chosen.
                if sample.is_sound and sample.tokens_per_second > best.get(trial, (0.0, config))[0]:
                    best[trial] = (sample.tokens_per_second, config)
        if not result.sweep:
            result.why_not = result.troubles[0] if result.troubles else "nothing could be measured"
            return
        self._choose(entry, {trial: best[trial][1] if trial in best else configs[0] for trial in self._plan.closed})
        if not self._plan.rounds:
            for trial in self._plan.closed:
                sample_of = result.sweep.get(result.chosen[trial.name], {})
                result.rounds[trial.name] = [sample_of[trial.name]] if trial.name in sample_of else []

    def _chosen_before(self, entry: Entry, configs: Sequence[Config]) -> dict[Trial, Config] | None:
        """What an earlier comparison chose, if it did so for every load and all of it still exists."""
        earlier = self._plan.swept.get(entry.peer.name)
        if earlier is None:
            return None
        by_text = {config.text: config for config in configs}
        wanted = {trial: earlier.chosen.get(trial.name, "") for trial in self._plan.closed}
        if not all(text in by_text for text in wanted.values()):
            return None
        return {trial: by_text[text] for trial, text in wanted.items()}

    def _choose(self, entry: Entry, chosen: Mapping[Trial, Config]) -> None:
        """An offered rate takes the configuration of the closed loop with the most similar requests."""
        entry.chosen = dict(chosen)
        for trial in self._plan.offered:
            nearest = min(self._plan.closed, key=lambda closed: abs(closed.sentences - trial.sentences))
            entry.chosen[trial] = chosen[nearest]
        entry.result.chosen = {trial.name: config.text for trial, config in entry.chosen.items()}

    def _measure(self, entry: Entry) -> None:
        for config, trials in _by_config(entry.chosen):
            for trial, sample in self._run_trials(entry, config, trials, self._plan.seconds):
                entry.result.rounds.setdefault(trial.name, []).append(sample)

    def _measure_replicas(self, entry: Entry) -> None:
        with_replicas = getattr(entry.peer, "with_replicas", None)
        if with_replicas is None:
            return
        for count in self._plan.replicas:
            config = with_replicas(self._bench, count)
            for _, sample in self._run_trials(entry, config, self._plan.closed[:1], self._plan.seconds):
                entry.result.by_replicas.setdefault(str(count), []).append(sample)

    def _run_trials(
        self, entry: Entry, config: Config, trials: Sequence[Trial], seconds: float
    ) -> Iterator[tuple[Trial, Sample]]:
        """Start it once, put it under each load, stop it. What does not work is added to its troubles."""
        name = f"{entry.peer.name} {config.text}"
        try:
            with entry.peer.running(self._bench, config) as endpoint:
                entry.result.note = entry.peer.note
                for trial in trials:
                    sample = self._sample(endpoint, trial, seconds)
                    if sample is None:
                        entry.result.rounds.setdefault(trial.name, [])
                    else:
                        if not sample.requests_per_second and not sample.faults:
                            self._trouble(entry, config, f"{trial.name}: no answer within {seconds:g} s")
                        self._log(
                            f"{name}: {trial.name} {sample.tokens_per_second:,.0f} tokens/s, "
                            f"p99 {sample.p99_ms:,.1f} ms" + (f"  {sample.faults[0]}" if sample.faults else "")
                        )
                        yield trial, sample
        except (CannotRunError, DidNotStartError) as error:
            self._trouble(entry, config, f"it does not start: {error}")
        except LoadError as error:
            self._trouble(entry, config, str(error))

    def _trouble(self, entry: Entry, config: Config, text: str) -> None:
        self._log(f"{entry.peer.name} {config.text}: {text}")
        line = without_paths(text) + ("" if config.text == "defaults" else f" ({config.text})")
        if line not in entry.result.troubles:
            entry.result.troubles.append(line)

    def _sample(self, endpoint: Endpoint, trial: Trial, seconds: float) -> Sample | None:
        plan = self._plan
        return take_sample(endpoint, trial, self._materials, seconds, plan.warm_up, plan.processes, self._interrupt)


def _by_config(chosen: Mapping[Trial, Config]) -> list[tuple[Config, list[Trial]]]:
    """Trials by configuration: a server is started once for all of its trials."""
    grouped: dict[str, tuple[Config, list[Trial]]] = {}
    for trial, config in chosen.items():
        grouped.setdefault(config.text, (config, []))[1].append(trial)
    return list(grouped.values())
