"""A row of results: texts are made, encoded and checked, then sent while the clock runs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tritonembed_perf.run.checks import AnswerCheck
from tritonembed_perf.run.clients import Interrupt, Watcher, run_clients
from tritonembed_perf.run.corpus import (
    PooledRequest,
    WordTexts,
    check_length,
    count_tokens,
    draw_lengths,
    make_requests,
    read_dataset,
    requests_to_prepare,
)
from tritonembed_perf.run.gpu import GpuMeter, GpuUse
from tritonembed_perf.run.job import Load, Work
from tritonembed_perf.run.outcome import Outcome
from tritonembed_perf.run.progress import ProgressBar
from tritonembed_perf.run.reference import embed_with_transformers, make_references
from tritonembed_perf.run.server_processes import ServerProcesses
from tritonembed_perf.run.settings import Settings
from tritonembed_perf.run.target import Target, embed_alone, refuse_other_dimensions


@dataclass(frozen=True)
class Row:
    """One batch size. server_cpu_seconds: None where the server's processes can't be seen."""

    batch_size: int
    distinct_requests: int
    outcome: Outcome
    server_cpu_seconds: float | None
    gpus: Sequence[GpuUse]


class Texts:
    """Where the texts of every batch size come from."""

    def __init__(self, settings: Settings, target: Target) -> None:
        self._settings = settings
        self._tokenizer = target.tokenizer
        longest = target.files.max_length
        self.mean_length: float
        if settings.dataset is not None:
            self._dataset = read_dataset(settings.dataset)
            # The server cuts what is longer than the model takes.
            self._dataset_tokens = [min(n, longest) for n in count_tokens(self._tokenizer, self._dataset)]
            self.mean_length = float(np.mean(self._dataset_tokens))
            return
        self._words = WordTexts(self._tokenizer)
        # An impossible length is found before anything else is done.
        check_length(f"--prompt-length {settings.prompt_length}", settings.prompt_length, self._words, longest)
        whole = settings.distribution == "fixed"
        self.mean_length = settings.prompt_length if whole else settings.prompt_length / 2

    def requests(self, batch_size: int) -> list[PooledRequest]:
        """Different requests, to be sent in turn."""
        settings = self._settings
        if settings.dataset is not None:
            repeats = -(-batch_size // len(self._dataset))
            requests = make_requests(self._dataset * repeats, self._dataset_tokens * repeats, batch_size)
            return requests[: requests_to_prepare(batch_size, self.mean_length, settings.requests)]
        count = requests_to_prepare(batch_size, self.mean_length, settings.requests) * batch_size
        rng = np.random.default_rng(settings.seed)
        lengths = draw_lengths(settings.distribution, settings.prompt_length, self._words.shortest, count, rng).tolist()
        return make_requests(self._words.of_lengths(lengths, random.Random(settings.seed)), lengths, batch_size)


def prepare(settings: Settings, target: Target, requests: Sequence[PooledRequest]) -> Work:
    """Encode the requests and learn their right answers. Raises UsageError where the server refuses them."""
    if settings.reference == "model":
        references = make_references(requests, lambda texts: embed_with_transformers(target.files, texts))
    else:
        references = make_references(requests, lambda texts: embed_alone(target.protocol, texts, settings.timeout))
    refuse_other_dimensions(next(iter(references.values())).vectors.shape[1], target.files)
    # A prompt of the model's own would be counted by the server and not here.
    tokens = tuple(request.tokens for request in requests)
    comparable = settings.dataset is None and not target.files.prompt_for(None)
    check = AnswerCheck(
        target.files.dimensions,
        target.files.normalize,
        settings.min_cosine,
        references,
        tokens if comparable else None,
    )
    payloads = tuple(target.protocol.encode(request.texts) for request in requests)
    return Work(target.protocol, payloads, len(requests[0].texts), tokens, check)


def measure(
    settings: Settings, work: Work, processes: ServerProcesses | None, bar: ProgressBar, interrupt: Interrupt
) -> Row:
    """Run the load on one batch size."""
    load = Load(
        settings.concurrency,
        settings.rate,
        settings.requests,
        settings.duration,
        settings.warm_up,
        settings.timeout,
        settings.seed,
    )
    watcher = _Watcher(processes, bar)
    with interrupt.catching():
        outcome = run_clients(work, load, settings.processes, watcher, interrupt)
    return Row(work.sentences, len(work.payloads), outcome, watcher.server_cpu_seconds, watcher.gpus)


class _Watcher(Watcher):
    """Looks at the server while the clock runs."""

    def __init__(self, processes: ServerProcesses | None, bar: ProgressBar) -> None:
        self._processes = processes
        self._bar = bar
        self._before = 0.0
        self._meter = GpuMeter()
        self.server_cpu_seconds: float | None = None
        self.gpus: Sequence[GpuUse] = ()

    def begin(self) -> None:
        if self._processes is not None:
            self._before = self._processes.cpu_seconds()
        self._meter.start()

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        self._bar.update(done, failed, elapsed)

    def end(self) -> None:
        if self._processes is not None:
            self.server_cpu_seconds = self._processes.cpu_seconds() - self._before
        self.gpus = self._meter.stop()
