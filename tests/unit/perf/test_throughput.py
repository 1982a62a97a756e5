"""Errors of `load throughput` before it starts a server."""

import sys
from collections.abc import Callable

import pytest
from tests.models import ModelShelf

from tritonembed_perf.options import run_script
from tritonembed_perf.scripts import load
from tritonembed_perf.server import ServerEndedError

Run = Callable[..., object]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script with these arguments. Returns its exit code. A started server ends at once."""

    def start(*_: object) -> None:
        raise ServerEndedError(2, "tritonembed-manager: the server was started")

    def main(*words: str) -> object:
        monkeypatch.setattr(load, "running_server", start)
        monkeypatch.setattr(sys, "argv", ["load", "throughput", *words])
        with pytest.raises(SystemExit) as ended:
            run_script("load", "", load.throughput, load.bursts)
        return ended.value.code

    return main


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--loads", "5x"], "--loads: '5x' is not a load such as 50x64@32"),
        (["--loads", "5x1@0"], "--loads: '5x1@0' is not a load such as 50x64@32"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "a"], "--seconds"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "1.5"], "--rounds"),
    ],
)
def test_an_option_that_is_wrong_is_named(
    options: list[str], reason: str, run: Run, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(shelf("bert")), *options) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        ("65x1@1", "the model takes at most 64 tokens"),
        ("2x1@1", "no text has a length of 2 tokens: a word and the special tokens have 3 already"),
        ("50x1025@1", "the server takes 1024 sentences a request"),
    ],
)
def test_a_load_that_the_model_cannot_serve_is_refused(
    loads: str, reason: str, run: Run, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(shelf("bert")), "--loads", f"50x1@1,{loads}") == 2
    assert capsys.readouterr().err == f"load: {loads}: {reason}\n"


def test_a_model_that_is_not_there_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("/no/such/model") == 2
    assert capsys.readouterr().err == "load: the tokenizer of /no/such/model: there is no model folder model\n"


def test_a_server_that_does_not_come_up_is_one_line(
    run: Run, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(shelf("bert")), "--loads", "50x1@1") == 2
    assert capsys.readouterr().err == "load: tritonembed-manager: the server was started\n"
