"""The file for results is checked before anything is measured. Results name no folder of this machine."""

import shlex
import sys
from pathlib import Path

import pytest

from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.options import run_script
from tritonembed_perf.reports import begin_report, check_output, write_report
from tritonembed_perf.scripts import load


def test_a_file_that_can_not_be_written_is_found_before_the_measurement(tmp_path: Path) -> None:
    check_output("--json", None)
    check_output("--json", tmp_path / "new.json")
    for path in (tmp_path, tmp_path / "missing" / "new.json"):
        with pytest.raises(UsageError, match="--json: "):
            check_output("--json", path)


def test_a_script_also_checks_its_file_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "model", "--json", f"{tmp_path}/missing/new.json"])
    with pytest.raises(SystemExit) as ended:
        run_script("load", "", load.throughput)
    assert ended.value.code == 2
    assert "load: --json: there is no folder" in capsys.readouterr().err


def test_a_report_that_can_not_be_written_any_more_is_one_line(tmp_path: Path) -> None:
    write_report(tmp_path / "new.json", {"a": 1})
    assert (tmp_path / "new.json").read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(BenchError, match="can't be written"):
        write_report(tmp_path, {})


def test_the_command_of_a_report_names_files_without_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    new = tmp_path / "result.json"
    monkeypatch.setattr(
        sys, "argv", ["x", "run", "--model", f"{tmp_path}/model", f"--json={new}", "--server", "http://a:1/v1"]
    )
    expected = ["tritonembed-bench", "run", "--model", "model", "--json=result.json", "--server", "http://a:1/v1"]
    assert shlex.split(begin_report()["command"]) == expected
