"""The order of a comparison: in the first round all settings of each peer, then the best of them, round after round."""

from collections.abc import Callable, Sequence

from tritonembed_manager.tune.loadgen.clients import Interrupt
from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.compare.environments import Bench, CannotRunError
from tritonembed_perf.compare.measuring import Materials, Window, take_sample
from tritonembed_perf.compare.peer import DEFAULTS, Peer
from tritonembed_perf.compare.results import Result, Trial
from tritonembed_perf.reports import without_paths


class Contest:
    """Measures the peers under the trials; `results` can be read at any time, also after an interruption."""

    def __init__(
        self,
        bench: Bench,
        peers: Sequence[Peer],
        trials: Sequence[Trial],
        window: Window,
        materials: Materials,
        log: Callable[[str], None],
    ) -> None:
        self.results = [Result(peer.name) for peer in peers]
        self._entries = list(zip(peers, self.results, strict=True))
        self._bench = bench
        self._trials = trials
        self._window = window
        self._materials = materials
        self._log = log
        self._interrupt = Interrupt()

    def run(self, rounds: int) -> bool:
        """Run everything. False if Ctrl-C ended it early."""
        try:
            for peer, result in self._entries:
                self._prepare(peer, result)
            for number in range(rounds):
                self._log(f"round {number + 1} of {rounds}")
                for peer, result in self._entries:
                    if not result.why_not:
                        self._measure(peer, result)
        except KeyboardInterrupt:
            return False
        return True

    def _prepare(self, peer: Peer, result: Result) -> None:
        self._log(f"{peer.name}: preparing")
        try:
            peer.prepare(self._bench)
        except CannotRunError as error:
            result.why_not = without_paths(str(error))
            self._log(f"{peer.name}: {error}")
        result.note = peer.note

    def _measure(self, peer: Peer, result: Result) -> None:
        """A round of one peer. A server is started once for all trials that want its settings."""
        wanted: dict[str, list[Trial]] = {}
        for trial in self._trials:
            best = result.best(trial)
            for config in [best[0]] if best else peer.configs(self._bench):
                wanted.setdefault(config, []).append(trial)
        for config, trials in wanted.items():
            self._run_trials(peer, result, config, trials)
        if not result.samples:
            result.why_not = result.troubles[0] if result.troubles else "nothing could be measured"

    def _run_trials(self, peer: Peer, result: Result, config: str, trials: Sequence[Trial]) -> None:
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
                    sample = take_sample(endpoint, trial, self._materials, self._window, self._interrupt)
                    if sample is None:
                        continue
                    if not sample["requests_per_second"] and not sample["faults"]:
                        trouble(f"{trial}: no answer within {self._window.seconds:g} s")
                    result.samples.setdefault(config, {}).setdefault(str(trial), []).append(sample)
                    speed = f"{sample['tokens_per_second']:,.0f} tokens/s, p99 {sample['p99_ms']:,.1f} ms"
                    self._log("  ".join([f"{name}: {trial} {speed}", *sample["faults"][:1]]))
        except (CannotRunError, LoadError) as error:
            trouble(str(error))
