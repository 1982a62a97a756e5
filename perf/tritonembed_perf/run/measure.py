"""A row of results: texts are made, encoded and checked, then sent while the clock runs."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tritonembed.cli.progress import Bar
from tritonembed_manager.tune.loadgen.clients import Interrupt, Watcher, run_clients
from tritonembed_manager.tune.loadgen.load import Outcome, Work
from tritonembed_manager.tune.loads import WordTexts, count_tokens
from tritonembed_perf.loadgen.answers import AnswerCheck, embed_with_transformers, make_references
from tritonembed_perf.loadgen.protocol import make_work
from tritonembed_perf.loadgen.requests import (
    PooledRequest,
    draw_lengths,
    make_requests,
    read_dataset,
    requests_to_prepare,
)
from tritonembed_perf.loadgen.target import Target, check_length, embed_alone, refuse_other_dimensions
from tritonembed_perf.run.server_use import GpuMeter, GpuUse, ServerProcesses
from tritonembed_perf.run.settings import Settings


@dataclass(frozen=True)
class Row:
    """One batch size. server_cpu_seconds: None if the server's processes can't be seen."""

    batch_size: int
    distinct_requests: int
    outcome: Outcome
    server_cpu_seconds: float | None
    gpus: Sequence[GpuUse]


class ProgressBar(Bar):
    """Of one batch size: how far, how fast, how many failures. Drawn on a terminal only."""

    def __init__(self, settings: Settings, batch_size: int) -> None:
        self._is_timed = settings.duration is not None
        super().__init__(
            f"batch {batch_size}",
            "{task.fields[figures]}",
            settings.duration or settings.requests,
            shown=sys.stderr.isatty(),
            transient=True,
            figures="warm-up",
        )

    def update(self, done: int, failed: int, elapsed: float) -> None:
        """done, failed: requests so far. elapsed: seconds."""
        if not elapsed:
            return
        figures = f"{done:,} answers, {done / elapsed:,.0f} a second" + (f", {failed:,} failed" if failed else "")
        self.show(elapsed if self._is_timed else done + failed, figures=figures)


class Texts:
    """The source of texts for every batch size."""

    def __init__(self, settings: Settings, target: Target) -> None:
        self._settings = settings
        longest = target.files.max_length
        if settings.dataset is not None:
            self._dataset = read_dataset(settings.dataset)
            # The server cuts what is longer than the model takes.
            self._dataset_tokens = [min(n, longest) for n in count_tokens(target.tokenizer, self._dataset)]
            self._mean_length = float(np.mean(self._dataset_tokens))
            return
        self._words = WordTexts(target.tokenizer)
        # An impossible length is found before anything else is done.
        check_length(f"--prompt-length {settings.prompt_length}", settings.prompt_length, self._words, longest)
        self._mean_length = settings.prompt_length / (1 if settings.distribution == "fixed" else 2)

    def requests(self, batch_size: int) -> list[PooledRequest]:
        """Different requests, to be sent in turn."""
        settings = self._settings
        count = requests_to_prepare(batch_size, self._mean_length, settings.load.requests)
        if settings.dataset is not None:
            repeats = -(-batch_size // len(self._dataset))
            return make_requests(self._dataset * repeats, self._dataset_tokens * repeats, batch_size)[:count]
        longest, shortest = settings.prompt_length, self._words.shortest
        rng = np.random.default_rng(settings.seed)
        lengths = draw_lengths(settings.distribution, longest, shortest, count * batch_size, rng).tolist()
        return make_requests(self._words.of_lengths(lengths, random.Random(settings.seed)), lengths, batch_size)


def prepare(settings: Settings, target: Target, requests: Sequence[PooledRequest]) -> Work:
    """Encode the requests and find their right answers. Raises UsageError if the server refuses them."""
    files = target.files
    if settings.reference == "model":
        references = make_references(requests, lambda texts: embed_with_transformers(files, texts))
    else:
        references = make_references(requests, lambda texts: embed_alone(target.protocol, texts, settings.timeout))
    refuse_other_dimensions(next(iter(references.values())).vectors.shape[1], files)
    # A prompt of the model's own would be counted by the server and not here.
    comparable = settings.dataset is None and not files.prompt_for(None)
    tokens = tuple(request.tokens for request in requests) if comparable else None
    check = AnswerCheck(files.dimensions, files.normalize, settings.min_cosine, references, tokens)
    return make_work(target.protocol, requests, check)


def measure(
    settings: Settings,
    batch_size: int,
    work: Work,
    processes: ServerProcesses | None,
    bar: ProgressBar,
    interrupt: Interrupt,
) -> Row:
    """Run the load on one batch size."""
    watcher = _Watcher(processes, bar)
    with interrupt.catching():
        outcome = run_clients(work, settings.load, settings.client_processes, watcher, interrupt)
    return Row(batch_size, len(work.payloads), outcome, watcher.cpu_seconds, watcher.gpus)


@dataclass
class _Watcher(Watcher):
    """Measures the server's use while the clock runs."""

    processes: ServerProcesses | None
    bar: ProgressBar
    cpu_seconds: float | None = None
    gpus: Sequence[GpuUse] = ()
    meter: GpuMeter = field(default_factory=GpuMeter)

    def begin(self) -> None:
        if self.processes is not None:
            self.cpu_seconds = -self.processes.cpu_seconds()
        self.meter.start()

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        self.bar.update(done, failed, elapsed)

    def end(self) -> None:
        if self.processes is not None and self.cpu_seconds is not None:
            self.cpu_seconds += self.processes.cpu_seconds()
        self.gpus = self.meter.stop()
