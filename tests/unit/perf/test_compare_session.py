"""The whole command, with a small server as the peer that gives wrong answers."""

import json
from pathlib import Path

import pytest
from tests.models import ModelShelf
from tests.unit.perf.fake_peer import FakeServer

from tritonembed_perf.cli import main
from tritonembed_perf.compare.peer import Bench
from tritonembed_perf.compare.peers import all_peers


class TwoConfigurations(FakeServer):
    def configs(self, bench: Bench) -> list[str]:
        return ["--one", "--two"]


def run(folder: Path, model: Path, *more: str) -> int:
    options = ["--model", str(model), "--work-dir", str(folder / "work"), "--device", "cpu", "--loads", "8x2@2"]
    options += ["--seconds", "0.5", "--warm-up", "0", "--rounds", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *options, "--out", str(folder / "out"), *more])
    return int(ended.value.code or 0)


def test_wrong_vectors_are_counted_reported_and_exit_code_1(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = all_peers()["infinity-emb"]
    monkeypatch.setattr(
        "tritonembed_perf.compare.contest.choose_peers", lambda _: [TwoConfigurations(tmp_path / "server.py"), absent]
    )
    assert run(tmp_path, shelf("roberta")) == 1
    said = capsys.readouterr()
    assert "wrong vectors from fake" in said.err
    text = (tmp_path / "out" / "compare.json").read_text()
    assert str(tmp_path) not in text
    report = json.loads(text)
    fake, infinity = report["systems"]
    assert set(fake["samples"]) == {"--one", "--two"}
    [figures] = fake["samples"]["--one"]["8x2@2"]
    assert figures["wrong"] > 0
    assert "4 dimensions instead of 128" in figures["faults"][0]
    assert infinity["why_not"].startswith("infinity_emb is not installed: pip install 'infinity-emb[server,torch]==")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"compare.md", "tokens-by-load.png"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--loads", "100000x1@1"], "100000x1@1: the model takes at most"),
        (["--loads", "2x1@1"], "2x1@1: no text has a length of 2 tokens"),
        (["--loads", "8x1025@1"], "8x1025@1: the server takes 1024 sentences a request"),
    ],
)
def test_a_load_that_no_server_can_have_is_refused_before_anything_starts(
    options: list[str],
    said: str,
    tmp_path: Path,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.compare.contest.Contest", lambda *_: pytest.fail("it started"))
    assert run(tmp_path, shelf("roberta"), *options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_unexpected_error_does_not_lose_the_figures(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeServer):
        def configs(self, bench: Bench) -> list[str]:
            raise ZeroDivisionError

    monkeypatch.setattr("tritonembed_perf.compare.contest.choose_peers", lambda _: [Broken(tmp_path / "server.py")])
    with pytest.raises(ZeroDivisionError):
        main(["compare", "--model", str(shelf("roberta")), "--device", "cpu", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["runs"][0]["interrupted"]
