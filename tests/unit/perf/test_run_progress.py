"""The live line of `tritonembed-bench run`."""

import io
import sys

import pytest

from tritonembed_perf.run.progress import ProgressBar
from tritonembed_perf.run.settings import make_settings

OPTIONS = {"protocol": "kserve", "warm_up": 1.0, "timeout": 60.0, "reference": "server", "min_cosine": 0.999, "seed": 0}


class Screen(io.StringIO):
    """Standard error, on a terminal or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def drawn(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, **load: float) -> str:
    monkeypatch.setattr(sys, "stderr", screen := Screen(is_terminal))
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressBar(make_settings(OPTIONS | load), 16) as bar:
        bar.update(0, 0, 0.0)
        bar.update(40, 10, 2.0)
    return screen.getvalue()


def test_it_says_how_far_how_fast_and_how_many_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    line = drawn(monkeypatch, True, requests=200)
    assert "batch 16" in line
    assert "40 answers, 20 a second, 10 failed" in line
    assert "25%" in line


def test_with_a_duration_it_follows_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "50%" in drawn(monkeypatch, True, duration=4.0)


def test_elsewhere_than_on_a_terminal_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn(monkeypatch, False, requests=200)
