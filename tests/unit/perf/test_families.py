"""The families' script: its list of cases, its verdicts, its table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritonembed_perf.families import reference, registry, verdicts
from tritonembed_perf.families.registry import FamilyCase, case, load_cases, select
from tritonembed_perf.families.verdicts import CaseResult, Row, compare, judge


def vectors(*rows: list[float]) -> dict[str, Any]:
    return {"plain": np.array(rows, np.float32)}


def test_every_case_has_a_name_of_its_own() -> None:
    cases = load_cases()
    assert len(cases) > 200
    assert all(name == found.name == found.write.__name__ for name, found in cases.items())


def test_a_second_case_of_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(folder: Path) -> None: ...

    monkeypatch.setattr(registry, "CASES", {})
    case("family")(one)
    with pytest.raises(ValueError, match="two cases one"):
        case("family")(one)


def test_patterns_select_by_name_and_by_family() -> None:
    cases = {name: FamilyCase(name, family, print) for name, family in (("a_one", "A"), ("a_two", "A"), ("b", "B"))}
    assert [found.name for found in select(cases, [])] == ["a_one", "a_two", "b"]
    assert [found.name for found in select(cases, ["*_two", "B"])] == ["a_two", "b"]


def test_code_is_run_by_both_sides_or_by_neither() -> None:
    assert FamilyCase("a", "A", print).engine_arguments == {}
    arguments = FamilyCase("a", "A", print, trusted=True, vllm={"max_model_len": 8}).engine_arguments
    assert arguments == {"trust_remote_code": True, "max_model_len": 8}


def test_the_texts_are_embedded_as_texts_queries_and_passages() -> None:
    assert len(set(reference.TEXTS)) == len(reference.TEXTS) >= 40
    assert set(reference.KINDS) == {"plain", "query", "passage"}
    assert set(reference.PROMPTED) <= set(reference.TEXTS)


def test_equal_vectors_are_right() -> None:
    verdict, detail, cosine = compare(vectors([1, 2], [3, 4]), vectors([1, 2], [3, 4]), 0.9999)
    assert (verdict, detail) == (CaseResult.RIGHT, "")
    assert cosine == pytest.approx(1)


def test_a_different_vector_is_wrong_and_its_text_is_named_by_its_place() -> None:
    verdict, detail, cosine = compare(vectors([1, 0], [0, 1]), vectors([1, 0], [1, 1]), 0.9999)
    assert verdict is CaseResult.WRONG
    assert detail == "plain: 1 (#1) of 2 texts, least cosine 0.707"
    assert cosine == pytest.approx(0.5**0.5)


def test_a_vector_of_another_length_is_wrong() -> None:
    assert compare(vectors([1, 0]), vectors([1, 0, 0]), 0.9999)[:2] == (CaseResult.WRONG, "3 dimensions instead of 2")
    verdict, detail, _ = compare(vectors([1, 0]), vectors([2, 0]), 0.9999)
    assert (verdict, detail) == (CaseResult.WRONG, "plain: norms differ by up to 100.0%")


def test_a_logit_close_to_zero_is_judged_by_the_size_of_the_others() -> None:
    assert compare(vectors([1e-4], [1], [2]), vectors([1.01e-4], [1], [2]), 0.9999)[0] is CaseResult.RIGHT
    assert compare(vectors([1e-4], [1], [2]), vectors([2e-2], [1], [2]), 0.9999)[0] is CaseResult.WRONG
    assert compare(vectors([1e-4], [1], [2]), vectors([1e-4], [1.01], [2]), 0.9999)[0] is CaseResult.WRONG


def test_a_vector_that_is_missing_is_wrong_unless_the_reference_has_none_either() -> None:
    nothing = [float("nan")] * 2
    assert compare(vectors([1, 0]), vectors(nothing), 0.9999)[0] is CaseResult.WRONG
    assert compare(vectors([1, 0], nothing), vectors([1, 0], [0, 1]), 0.9999)[0] is CaseResult.RIGHT


def test_zeros_agree_with_zeros_alone() -> None:
    assert compare(vectors([0, 0]), vectors([0, 0]), 0.9999)[0] is CaseResult.RIGHT
    assert compare(vectors([0, 0]), vectors([0, 1]), 0.9999)[0] is CaseResult.WRONG


@pytest.mark.parametrize(
    ("reference", "served", "must_refuse", "verdict"),
    [
        ({}, {"refused": "no"}, False, CaseResult.REFUSED),
        ({"refused": "no"}, {"refused": "no"}, False, CaseResult.NO_REFERENCE),
        ({"refused": "no"}, {"executor": "direct"}, False, CaseResult.WRONG),
        ({"crashed": "no"}, {}, False, CaseResult.WRONG),
        ({}, {"crashed": "no"}, False, CaseResult.WRONG),
        ({}, {"executor": "direct"}, True, CaseResult.WRONG),
    ],
)
def test_a_refusal_decides_without_vectors(
    reference: dict[str, Any], served: dict[str, Any], must_refuse: bool, verdict: CaseResult
) -> None:
    found = judge(reference, served, must_refuse)
    assert found is not None
    assert found[0] is verdict


def test_vectors_decide_if_both_serve() -> None:
    assert judge({}, {"executor": "direct"}, False) is None


def test_messages_hold_no_path_and_one_line() -> None:
    assert (
        verdicts.clean("cannot load '/tmp/a b/x'\n in /var/tmp/y/model.bin: no")
        == "cannot load 'a b/x' in model.bin: no"
    )
    assert len(verdicts.clean("word " * 100)) == 200


def test_the_table_has_a_line_per_case_and_shows_what_is_wrong() -> None:
    rows = [
        Row("a", "One", CaseResult.RIGHT, cosine=0.999999, executor="direct"),
        Row("b", "Two", CaseResult.WRONG, "x | y", cosine=0.5, executor="direct", arguments={"max_model_len": 8}),
    ]
    page = verdicts.markdown(rows)
    assert "2 cases: 1 right, 1 WRONG." in page
    assert "| `a` | right | 0.99999 | direct |  |  |" in page
    assert '| `b` | **WRONG** | 0.50000 | direct | x \\| y | `{"max_model_len": 8}` |' in page
    assert page.index("## One") < page.index("## Two")


def test_the_results_are_written_as_markdown_and_json(tmp_path: Path) -> None:
    verdicts.write_results([Row("a", "One", CaseResult.REFUSED, "no")], tmp_path / "out")
    assert (tmp_path / "out" / "models.md").read_text().startswith("# Models")
    assert json.loads((tmp_path / "out" / "models.json").read_text())[0]["verdict"] == "refused"
