"""A comparison's reports: tables, Markdown, JSON that can be merged, charts."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tritonembed_perf.compare.contest import make_head
from tritonembed_perf.compare.results import (
    Result,
    Sample,
    Trial,
    markdown,
    merge_reports,
    plot,
    publish,
    read_report,
    remarks,
    rows_of,
)
from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import describe_environment, without_paths

BIG, RATE = Trial(50, 64, 4), Trial(50, 1, rate=20)
MACHINE = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "gpus": []}


def sample(speed: float, *, p99: float = 3.0, wrong: int = 0, saturated: bool = False) -> Sample:
    figures = {"tokens_per_second": speed, "requests_per_second": speed / 3200, "p50_ms": 1.0, "p99_ms": p99}
    faults = ["a vector with cosine 0.1"] if wrong else []
    return {**figures, "errors": {}, "wrong": wrong, "faults": faults, "client_saturated": saturated}


def result(system: str, *speeds: float, config: str = "--replicas 2", **more: Any) -> Result:
    return Result(system, samples={config: {str(BIG): list(map(sample, speeds))}} if speeds else {}, **more)


def environment(when: str = "2026-01-01T00:00:00+00:00") -> dict[str, Any]:
    return {"when": when, "machine": MACHINE, "versions": {"torch": "2"}, "command": "tritonembed-bench compare"}


def report(*, finished: bool = True, **changes: Any) -> dict[str, Any]:
    return make_head(environment(), "bert", "float32", "cpu", finished, [BIG]) | changes


def test_the_median_of_an_even_number_is_the_lower_of_the_two() -> None:
    found = result("one", 4.0, 1.0, 3.0, 2.0).of(BIG)
    assert found
    assert found["tokens_per_second"] == 2.0


def test_settings_with_more_rounds_win() -> None:
    found = result("one", 4.0, 5.0)
    found.samples["--lucky"] = {str(BIG): [sample(9.0)]}
    best = found.best(BIG)
    assert best
    assert best[0] == "--replicas 2"


@pytest.mark.parametrize("trial", [BIG, RATE, Trial(512, 1, rate=0.5)])
def test_a_trials_name_can_be_read_again(trial: Trial) -> None:
    assert Trial.parse(str(trial)) == trial


def test_the_table_is_ranked_and_shows_how_much_faster_ours_is() -> None:
    results = [
        result("slow", 100.0),
        result("tritonembed", 380.0, 400.0, 420.0),
        result("absent", why_not="not on PATH"),
        result("fast", 800.0),
    ]
    rows = rows_of(BIG, results)
    assert [row[0] for row in rows] == ["fast", "tritonembed", "slow", "absent"]
    assert [row[6] for row in rows] == ["0.50 x", "", "4.00 x", ""]
    assert rows[1][1:3] == ("400", "380 – 420")
    assert rows[3][2] == "not on PATH"


def test_an_offered_rate_is_ranked_by_latency_and_has_no_ratio() -> None:
    late, early = (
        Result(name, samples={"defaults": {str(RATE): [sample(1e3, p99=p99)]}})
        for name, p99 in (("late", 9.0), ("early", 2.0))
    )
    rows = rows_of(RATE, [result("tritonembed", 1.0), late, early])
    assert [row[0] for row in rows] == ["early", "late", "tritonembed"]
    assert {row[6] for row in rows} == {""}


def test_wrong_answers_and_a_saturated_client_are_in_the_table() -> None:
    bad = result("bad", 10.0)
    bad.samples["--replicas 2"][str(BIG)].append(sample(11.0, wrong=3, saturated=True))
    [row] = rows_of(BIG, [bad])
    assert row[0] == "bad *"
    assert row[7] == "0 / 3"
    said = remarks([BIG], [bad])
    assert "bad: a vector with cosine 0.1" in said
    assert said[-1].startswith("* the client's own CPU")


def test_the_chosen_and_the_tried_flags_are_printed() -> None:
    one = result("one", 10.0, note="1.0", troubles=["it fell over"])
    one.samples["--replicas 1"] = {str(BIG): [sample(5.0)]}
    assert remarks([BIG], [one]) == [
        "one (1.0): `--replicas 2` for 50x64@4",
        "one: no better were `--replicas 1`",
        "one: it fell over",
    ]


def test_a_load_without_samples_is_marked() -> None:
    assert rows_of(RATE, [result("program", 10.0)])[0][2] == "not measured"


def test_reports_of_several_runs_become_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish((report(), [result("tritonembed", 400.0), result("one", 100.0)]), tmp_path / "a")
    more = [result("tritonembed", 300.0, 500.0), result("one", why_not="gone"), result("two", 50.0)]
    publish((report(), more), tmp_path / "b")
    both, results = merge_reports([read_report(tmp_path / name / "compare.json") for name in ("a", "b")])
    assert [found.system for found in results] == ["tritonembed", "one", "two"]
    assert [one["tokens_per_second"] for one in results[0].every_sample()] == [400.0, 300.0, 500.0]
    assert not results[1].why_not
    assert len(both["runs"]) == 2
    capsys.readouterr()
    publish((both, results), tmp_path / "c")
    assert "two" in capsys.readouterr().out
    again, _ = read_report(tmp_path / "c" / "compare.json")
    assert again == json.loads(json.dumps(both))


def test_different_settings_of_two_runs_are_kept_apart() -> None:
    one, other = result("one", 1.0), result("one", 2.0, config="--replicas 4")
    _, [merged] = merge_reports([(report(), [one]), (report(), [other])])
    assert merged.best(BIG) == ("--replicas 4", [sample(2.0)])


def test_runs_on_different_machines_or_models_are_not_merged() -> None:
    elsewhere = report()
    elsewhere["runs"][0]["machine_line"] = "another CPU"
    with pytest.raises(UsageError, match="different machines"):
        merge_reports([(report(), []), (elsewhere, [])])
    with pytest.raises(UsageError, match="dtype is float32 in one file and bfloat16 in another"):
        merge_reports([(report(), []), (report(dtype="bfloat16"), [])])


@pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"systems": [{"system": "one"}]}', None])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "compare.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"--merge: compare\.json"):
        read_report(path)


def test_the_markdown_has_the_machine_the_command_and_what_is_missing() -> None:
    results = [result("tritonembed", 400.0), result("infinity-emb", why_not="infinity_emb is not installed")]
    page = markdown(report(finished=False), [BIG], results)
    assert "a CPU, 2 cores, 24 GiB, no GPU, 2026-01-01T00:00:00+00:00; interrupted" in page
    assert "    tritonembed-bench compare" in page
    assert "| infinity-emb | – | infinity_emb is not installed |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {9}


def test_charts_have_no_background_and_are_drawn_only_for_measurements(tmp_path: Path) -> None:
    one, two = result("tritonembed", 4.1e5), result("peer", 2e4)
    for number, found in enumerate((one, two)):
        found.samples["--replicas 2"][str(RATE)] = [sample(1e3, p99=10.0 + number)]
    plot(tmp_path, [BIG, RATE], [one, two, result("absent", why_not="gone")])
    for name in ("tokens-by-load", "p99-by-rate"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    (tmp_path / "none").mkdir()
    plot(tmp_path / "none", [BIG], [result("absent", why_not="gone")])
    assert not list((tmp_path / "none").iterdir())


def test_without_matplotlib_the_figures_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    publish((report(), [result("tritonembed", 400.0)]), tmp_path)
    assert (tmp_path / "compare.json").exists()
    assert "no charts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FileNotFoundError: '/home/me/model/config.json'", "FileNotFoundError: 'config.json'"),
        ("at 50 requests/s", "at 50 requests/s"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("in ../work/x and ~/y", "in x and y"),
    ],
)
def test_no_folder_of_the_machine_is_published(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_the_published_command_has_names_only() -> None:
    typed = ["tritonembed-bench", "compare", "--model", "/a/b/", "--python", "one=/c/python", "--loads", "50x1@4"]
    shown = describe_environment(typed)["command"]
    assert shown == "tritonembed-bench compare --model b --python one=python --loads 50x1@4"
