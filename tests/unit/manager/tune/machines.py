"""Machines for tests of `tune` without a server: a formula for tokens per second, and some noise."""

import random

from tritonembed_manager.tune.trials import Candidate, CandidateTrial, LoadRun, Space

LOAD = "50x64@32"
SPACE = Space((1, 2, 4, 8), (1, 2, 3), (8192, 16384, 32768))
DEFAULTS = Candidate(2, 1, 16384)


def bottleneck(candidate):
    """The slower of two stages: 30K tokens/s per tokenizer, 100K per replica, more with a larger budget."""
    budget = {8192: 0.8, 16384: 1.0, 32768: 1.1}[candidate.max_batch_tokens]
    return min(30e3 * candidate.tokenizer_instances, 100e3 * candidate.replicas * budget)


def flat(candidate):
    """All settings are equally fast."""
    return 100e3


class Machine:
    """`measure` for a Search. noise, drift: standard deviation of ln(rate) between runs, and between servers."""

    def __init__(self, speed=bottleneck, noise=0.0, drift=0.0, failing=lambda candidate: None, seed=0, loads=(LOAD,)):
        self.speed, self.noise, self.drift, self.failing, self.loads = speed, noise, drift, failing, loads
        self.rng = random.Random(seed)
        self.tried = []

    def __call__(self, candidate, *_):
        self.tried.append(candidate)
        failure = self.failing(candidate)
        if failure:
            return CandidateTrial(candidate, {}, failure, seconds=10)
        level = self.speed(candidate) * self.rng.lognormvariate(0, self.drift)
        runs = {load: [self._run(level) for _ in range(3)] for load in self.loads}
        return CandidateTrial(candidate, runs, seconds=10)

    def _run(self, level):
        return LoadRun(level * self.rng.lognormvariate(0, self.noise), p50_ms=10, p99_ms=20)
