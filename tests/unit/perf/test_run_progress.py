"""The live line of `tritonembed-bench run`."""

import io
import sys

import pytest

from tritonembed_perf.run import ServerWatcher
from tritonembed_perf.settings import RunSettings


class Screen(io.StringIO):
    """Standard error, on a terminal or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def drawn(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, settings: RunSettings) -> str:
    monkeypatch.setattr(sys, "stderr", screen := Screen(is_terminal))
    monkeypatch.setenv("COLUMNS", "160")
    with ServerWatcher(settings, 16, None) as bar:
        bar.progress(0, 0, 0.0)
        bar.progress(40, 10, 2.0)
    return screen.getvalue()


def test_the_line_shows_progress_speed_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    line = drawn(monkeypatch, True, RunSettings(requests=200))
    assert "batch 16" in line
    assert "40 answers, 20 a second, 10 failed" in line
    assert "25%" in line


def test_with_a_duration_the_line_follows_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "50%" in drawn(monkeypatch, True, RunSettings(duration=4.0))


def test_nothing_is_drawn_outside_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn(monkeypatch, False, RunSettings(requests=200))
