"""`tritonembed-manager verify`: its exit code, from the report of the engine's process."""

import json
import sys

import pytest
from tests.models import ModelShelf
from typer.testing import CliRunner

from tritonembed_manager.commands import verify
from tritonembed_manager.commands.app import app


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_depends_on_whether_the_vectors_are_right(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, right: bool, code: int
) -> None:
    monkeypatch.setattr(verify, "_run", lambda *_: {"right": right, "rows": []})
    result = CliRunner().invoke(app, ["verify", str(shelf("bert")), "--device=cpu", "--json"])
    assert (result.exit_code, json.loads(result.output)["right"]) == (code, right)


def test_the_log_goes_to_standard_error(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    report = json.dumps({"right": True, "rows": []})
    program = f"import json, sys; print('a log line'); open(json.loads(sys.argv[1])['report'], 'w').write({report!r})"
    monkeypatch.setattr(verify, "module_command", lambda _, arguments: [sys.executable, "-c", program, arguments])
    result = CliRunner().invoke(app, ["verify", str(shelf("bert")), "--device=cpu", "--json", "--log-verbose"])
    assert json.loads(result.stdout)["right"]
    written = capfd.readouterr()
    assert (written.out, written.err.count("a log line")) == ("", 1)


@pytest.mark.parametrize(
    ("of_scores", "kept", "shown"),
    [
        (
            False,
            None,
            "float32, 1 cases against it: cosine 0.9990000 and more (at least 0.9999 is asked), 2 neighbours in "
            "another order",
        ),
        (
            True,
            None,
            "float32, 1 cases against it: scores differ by at most 0.0010000 standard deviations (0.0001 are allowed)",
        ),
        (
            False,
            0.97,
            "int8 and float32, 1 cases against it: 0.9700 of the ten nearest among 349 texts are those of float32 (at "
            "least 0.98 is asked), cosine 0.9990000 and more",
        ),
    ],
)
def test_the_report_says_what_was_compared(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, of_scores: bool, kept: float | None, shown: str
) -> None:
    row = {"case": "a case", "tokens": 3, "distance": 0.001}
    report = {"right": False, "of_scores": of_scores, "allowed": 0.0001, "swaps": 2, "rows": [row], "source": "it"}
    report |= {"nearest": kept and {"kept": kept, "texts": 349, "asked": 0.98}, "quantization": kept and "int8"}
    monkeypatch.setattr(verify, "_run", lambda *_: {**report, "executor": "direct", "dtype": "float32"})
    result = CliRunner().invoke(app, ["verify", str(shelf("bert")), "--device=cpu"])
    assert f"WRONG: direct executor, {shown}" in result.output
