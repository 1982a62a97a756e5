"""The empty ensemble is ours but for its work, and ratios are those of rounds, not of medians."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tritonembed_manager.server.repository import read_configs, template_folder
from tritonembed_perf.failures import BenchError
from tritonembed_perf.scripts.empty_ensemble import PARAMETER, Round, compared, empty_ensemble, python_of, write_empty


def rounds(*figures: tuple[float, float, float]) -> list[Round]:
    """Of requests per second, milliseconds, and microseconds of tritonserver, to which the stubs add 30."""
    return [Round(rate, p50, {"tritonserver": cpu, "tokenizer": 10, "embedder": 20}) for rate, p50, cpu in figures]


def test_the_ratios_are_medians_of_the_rounds_ratios() -> None:
    empty = rounds((100, 1.0, 70), (1000, 2.0, 170), (400, 4.0, 370))
    ours = rounds((50, 4.0, 170), (900, 4.0, 270), (300, 6.0, 370))
    row = compared({"empty": empty, "ours": ours})
    assert row["ours"]["ratios"] == {
        "requests_per_second": pytest.approx(0.75),
        "p50_ms": pytest.approx(2.0),
        "all_cpu_us": pytest.approx(1.5),
    }
    assert set(row["empty"]["ratios"].values()) == {1.0}
    assert (row["ours"]["requests_per_second"], row["empty"]["p50_ms"]) == (300, 2.0)
    assert row["empty"]["cpu_us"] == {"tritonserver": 170, "tokenizer": 10, "embedder": 20}
    assert row["empty"]["all_cpu_us"] == 200
    assert [one["p50_ms"] for one in row["ours"]["rounds"]] == [4.0, 4.0, 6.0]


def test_empty_models_differ_from_ours_in_their_program_and_its_answer(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(template_folder(), repository)
    before = read_configs(repository)
    write_empty(repository, 50, 384)
    after = read_configs(repository)
    answers = {name: json.loads(after[name].parameters[PARAMETER].string_value) for name in ("tokenizer", "embedder")}
    assert answers == {"tokenizer": {"token_ids": 200}, "embedder": {"embedding": 1536, "num_tokens": 50}}
    for name, answer in answers.items():
        assert set(answer) <= {output.name for output in after[name].output}
        assert PARAMETER in (repository / name / "1" / "model.py").read_text()
        del after[name].parameters[PARAMETER]
    assert after == before


@pytest.mark.parametrize("loads", ["50x2@1", "50x1@1,20x1@1"])
def test_empty_models_are_for_requests_of_one_sentence(loads: str) -> None:
    context: Any = SimpleNamespace(args=[])
    with pytest.raises(BenchError, match="--loads: the empty models answer requests of one sentence, all of one"):
        empty_ensemble("model", context, loads=loads)


def test_another_checkout_runs_in_its_own_interpreter(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"--before: the checkout has no \.venv; run `make setup` there"):
        python_of(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert python_of(tmp_path) == str(python)
