"""What scenarios are measured on: servers that are given, looked at before anything is measured, or started here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tritonembed._batches import MAX_BATCH_SIZE
from tritonembed_engine.model.files import ModelFiles
from tritonembed_perf.failures import UsageError
from tritonembed_perf.manager import running_manager
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.perf_analyzer.scenarios import TARGETS, Scenario
from tritonembed_perf.run.corpus import WordTexts, check_length
from tritonembed_perf.run.suitable import check_sentences, check_server
from tritonembed_perf.server import running_server


def check_targets(
    scenarios: Sequence[Scenario], given: Mapping[str, str | None], files: ModelFiles, words: WordTexts
) -> None:
    """Texts of every shape can be made, and the servers that are given take them. Raises UsageError.

    Of all targets at once: what is wrong with the second one would otherwise be found after an hour on the first.
    """
    for target in TARGETS:
        shapes = [
            (shape.name, shape.tokens, shape.sentences)
            for scenario in scenarios
            if target in scenario.targets
            for shape in scenario.shapes
        ]
        for name, tokens, _ in shapes:
            check_length(name, tokens, words, files.max_length)
        address = given[target]
        if address is None:
            check_sentences(shapes, MAX_BATCH_SIZE)
        elif shapes:
            check_server(address, files, words, shapes)


@contextmanager
def reach(target: str, address: str | None, model: str, arguments: Sequence[str]) -> Iterator[str]:
    """Where the target listens; started where no address was given. Raises UsageError."""
    if address is not None:
        yield address
        return
    try:
        start = running_server if target == "triton" else running_manager
        with start(model, arguments) as running:
            yield running.target
    except ServerEndedError as error:
        raise UsageError(f"the {target} does not start: {error}") from None
