"""The order of a comparison: each peer is swept, then all are measured in turn, round after round."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tritonembed_manager.tune.loadgen.clients import Interrupt
from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.compare.environments import Bench, CannotRunError
from tritonembed_perf.compare.measuring import Materials, Window, take_sample
from tritonembed_perf.compare.peer import DEFAULTS, Peer
from tritonembed_perf.compare.results import Result, Sample, Trial
from tritonembed_perf.reports import without_paths

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """closed: closed loops, which the sweep is about, too. offered: open loops. window: of a round's samples.

    rounds: 0 if the sweep's own samples are the figures; sweep_seconds: 0 for no sweep. Not both.
    swept: an earlier comparison's results by system; its choice is taken instead of a sweep.
    """

    closed: Sequence[Trial]
    offered: Sequence[Trial]
    rounds: int
    window: Window
    sweep_seconds: float
    swept: Mapping[str, Result] = field(default_factory=dict)


class Contest:
    """Runs the plan; `results` can be read at any time, also after an interruption."""

    def __init__(self, bench: Bench, peers: Sequence[Peer], plan: Plan, materials: Materials, log: Log) -> None:
        self.results = [Result(peer.name) for peer in peers]
        self._entries = list(zip(peers, self.results, strict=True))
        self._bench = bench
        self._plan = plan
        self._materials = materials
        self._log = log
        self._interrupt = Interrupt()

    def run(self) -> bool:
        """Run everything. False if Ctrl-C ended it early."""
        try:
            for peer, result in self._entries:
                self._prepare(peer, result)
            for peer, result in self._running():
                self._choose(peer, result)
            for number in range(self._plan.rounds):
                self._log(f"round {number + 1} of {self._plan.rounds}")
                for peer, result in self._running():
                    self._measure(peer, result)
        except KeyboardInterrupt:
            return False
        return True

    def _running(self) -> Iterator[tuple[Peer, Result]]:
        return (entry for entry in self._entries if not entry[1].why_not)

    def _prepare(self, peer: Peer, result: Result) -> None:
        self._log(f"{peer.name}: preparing")
        try:
            peer.prepare(self._bench)
        except CannotRunError as error:
            result.why_not = without_paths(str(error))
            self._log(f"{peer.name}: {error}")
        result.note = peer.note

    def _choose(self, peer: Peer, result: Result) -> None:
        """The configuration of each trial: an earlier comparison's, the only or the first one, or the sweep's best."""
        plan, configs = self._plan, peer.configs(self._bench)
        earlier = plan.swept.get(peer.name, result).chosen
        if all(earlier.get(str(trial)) in configs for trial in plan.closed):
            result.chosen = {str(trial): earlier[str(trial)] for trial in plan.closed}
        elif plan.rounds and (plan.sweep_seconds <= 0 or len(configs) == 1):
            result.chosen = {str(trial): configs[0] for trial in plan.closed}
        else:
            self._sweep(peer, result, configs)
        if result.why_not:
            return
        for trial in plan.offered:
            # That of the closed loop with the most similar requests.
            nearest = min(plan.closed, key=lambda closed: abs(closed.sentences - trial.sentences))
            result.chosen[str(trial)] = result.chosen[str(nearest)]

    def _sweep(self, peer: Peer, result: Result, configs: Sequence[str]) -> None:
        plan = self._plan
        for config in configs:
            window = replace(plan.window, seconds=plan.sweep_seconds)
            for trial, sample in self._run_trials(peer, result, config, plan.closed, window):
                result.sweep.setdefault(config, {})[str(trial)] = sample
        if not result.sweep:
            result.why_not = result.troubles[0] if result.troubles else "nothing could be measured"
            return
        for name in map(str, plan.closed):
            found = {config: of[name] for config, of in result.sweep.items() if name in of}
            # A configuration that fails requests or answers wrongly can't be chosen.
            sound = {config: sample.tokens_per_second for config, sample in found.items() if sample.is_sound}
            result.chosen[name] = best = max(sound, key=lambda config: sound[config]) if sound else configs[0]
            if not plan.rounds:
                result.rounds[name] = [found[best]] if best in found else []

    def _measure(self, peer: Peer, result: Result) -> None:
        trials = [*self._plan.closed, *self._plan.offered]
        # A server is started once for all of its trials.
        for config in dict.fromkeys(result.chosen[str(trial)] for trial in trials):
            mine = [trial for trial in trials if result.chosen[str(trial)] == config]
            for trial, sample in self._run_trials(peer, result, config, mine, self._plan.window):
                result.rounds.setdefault(str(trial), []).append(sample)

    def _run_trials(
        self, peer: Peer, result: Result, config: str, trials: Sequence[Trial], window: Window
    ) -> Iterator[tuple[Trial, Sample]]:
        """Start it once, put it under each load, stop it. What does not work is added to its troubles."""
        name = f"{peer.name} {config}"

        def trouble(text: str) -> None:
            self._log(f"{name}: {text}")
            line = without_paths(text) + ("" if config == DEFAULTS else f" ({config})")
            result.troubles = list(dict.fromkeys([*result.troubles, line]))

        try:
            with peer.running(self._bench, config) as endpoint:
                result.note = peer.note
                for trial in trials:
                    sample = take_sample(endpoint, trial, self._materials, window, self._interrupt)
                    if sample is None:
                        result.rounds.setdefault(str(trial), [])
                        continue
                    if not sample.requests_per_second and not sample.faults:
                        trouble(f"{trial}: no answer within {window.seconds:g} s")
                    speed = f"{sample.tokens_per_second:,.0f} tokens/s, p99 {sample.p99_ms:,.1f} ms"
                    self._log("  ".join([f"{name}: {trial} {speed}", *sample.faults[:1]]))
                    yield trial, sample
        except (CannotRunError, LoadError) as error:
            trouble(str(error))
