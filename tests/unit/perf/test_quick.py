"""The guard against becoming slower: the limit of a drop, and the baseline to compare with."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models import ModelShelf

from tritonembed_engine.executors import loading
from tritonembed_perf.failures import BenchError
from tritonembed_perf.scripts import bench
from tritonembed_perf.scripts.bench import BASELINES, conclude, find_drops, rounds_until, uneven_rounds

ROWS = [
    {"load": "50x64@4", "ours": [100.0, 110.0, 90.0], "sentence_transformers": [50.0, 52.0, 48.0], "ratio": 2.0},
    {"load": "50x1@16", "ours": [30.0, 31.0, 29.0], "sentence_transformers": [10.0, 10.0, 10.0], "ratio": 3.0},
]


def environment(cpu: str = "A processor", cores: int = 2) -> dict[str, Any]:
    return {"machine": {"cpu": cpu, "cores": cores}, "command": "python -m tritonembed_perf.scripts.bench quick"}


def rows(**ratios: float) -> list[dict[str, Any]]:
    return [row | {"ratio": ratios.get(f"_{row['load']}".replace("@", "_"), row["ratio"])} for row in ROWS]


@pytest.mark.parametrize(("ratio", "drops"), [(2.0, 0), (2.5, 0), (1.61, 0), (1.59, 1), (0.1, 1)])
def test_a_drop_is_more_than_a_fifth_of_the_committed_ratio(ratio: float, drops: int) -> None:
    assert len(find_drops({"load": ratio}, {"load": 2.0})) == drops


def test_a_drop_is_reported_with_both_ratios_and_loads_without_a_committed_ratio_are_ignored() -> None:
    assert find_drops({"a": 1.0, "new": 0.1}, {"a": 2.0, "old": 9.0}) == [
        "a: 1.00 x is 50% below the committed 2.00 x",
    ]


def test_a_drop_fails_on_the_machine_of_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "baseline.json"
    conclude(environment(), ROWS, True, path)
    conclude(environment(), ROWS, False, path)
    assert "no ratio is more than 20 % below the baseline of A processor, 2 cores" in capsys.readouterr().out
    with pytest.raises(BenchError, match=r"50x64@4: 1\.50 x is 25% below the committed 2\.00 x"):
        conclude(environment(), rows(_50x64_4=1.5), False, path)


@pytest.mark.parametrize("other", [environment("Another"), environment(cores=4)])
def test_another_kind_of_machine_is_reported_as_without_a_baseline(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    conclude(environment(), ROWS, True, path)
    conclude(other, rows(_50x64_4=0.1), False, path)
    assert "there is no baseline of" in capsys.readouterr().out


def test_baselines_of_other_machines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    for cpu in ("one", "two", "one"):
        conclude(environment(cpu), ROWS, True, path)
    assert list(json.loads(path.read_text())) == ["one, 2 cores", "two, 2 cores"]


def test_loads_that_were_not_measured_keep_their_baseline_and_its_date(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    conclude(environment() | {"when": "monday"}, ROWS, True, path)
    conclude(environment() | {"when": "friday"}, [ROWS[1] | {"ratio": 3.5}], True, path)
    [found] = json.loads(path.read_text()).values()
    assert found["ratios"] == {"50x64@4": 2.0, "50x1@16": 3.5}
    assert [(row["load"], row["when"]) for row in found["rows"]] == [("50x64@4", "monday"), ("50x1@16", "friday")]


def test_figures_of_a_busy_machine_are_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = [ROWS[0] | {"sentence_transformers": [4.0, 40.0, 52.0]}, ROWS[1]]
    bearable = [ROWS[0] | {"sentence_transformers": [4.0, 50.0, 52.0]}, ROWS[1]]
    assert uneven_rounds(bearable) == []
    assert uneven_rounds(ROWS) == []
    assert uneven_rounds(busy) == ["50x64@4, sentence-transformers: the best rounds are 40 and 52 sentences/s"]
    with pytest.raises(BenchError, match=r"nothing is written to baseline\.json"):
        conclude(environment(), busy, True, tmp_path / "baseline.json")
    assert not (tmp_path / "baseline.json").exists()
    assert "the machine was busy" in capsys.readouterr().out


def test_rounds_end_in_time_and_are_never_fewer_than_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tritonembed_perf.scripts.bench.time.monotonic", lambda: now[0])

    def run(until: float) -> int:
        now[0], done = 100.0, 0
        for _ in rounds_until(until):
            now[0] += 10
            done += 1
        return done

    assert [run(until) for until in (1000.0, 139.0, 140.0, 100.0)] == [5, 3, 4, 2]


@pytest.mark.parametrize(
    ("flags", "precisions"),
    [
        ("avx512_vnni avx512_bf16", ["float32", "bfloat16", "int8"]),
        ("avx512_vnni", ["float32", "int8"]),
        ("avx2", ["float32"]),
    ],
)
def test_forwards_are_measured_in_the_precisions_of_the_processor(
    flags: str, precisions: list[str], shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: str, shapes: list[str], rounds: int, systems: list[str], quality: float) -> list[dict[str, Any]]:
        # A system is 10 sentences faster than the one before it.
        speeds = {name: 10.0 * number for number, name in enumerate(systems, 1)}
        return [{"system": name, "per_cpu_second": one, "rates": [one] * rounds} for name, one in speeds.items()]

    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(loading, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(bench, "compare", measured)
    found = bench.per_core_rows(str(shelf("bert")))
    assert [row["load"] for row in found] == [f"64x50, forward, {precision}" for precision in precisions]
    assert [row["ratio"] for row in found] == [2.0, 3.0, 4.0][: len(precisions)]
    assert find_drops({row["load"]: row["ratio"] * 0.75 for row in found}, {found[-1]["load"]: found[-1]["ratio"]})
    assert uneven_rounds(found) == []


def test_committed_baselines_are_of_quiet_machines() -> None:
    for report in json.loads(BASELINES.read_text()).values():
        assert uneven_rounds(report["rows"]) == []
        assert set(report["ratios"]) == {row["load"] for row in report["rows"]}
