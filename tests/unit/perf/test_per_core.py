"""Systems compute in turn; what counts is CPU time, and only of right vectors."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tritonembed_perf.failures import BenchError
from tritonembed_perf.scripts import per_core


class FakeSystem:
    """Takes the CPU seconds of its name, and twice that in the first turn."""

    order: ClassVar[list[str]] = []
    vectors: ClassVar = {"openvino": [[1.0, 0.0]], "wrong": [[0.0, 1.0]]}
    seconds: ClassVar = {"openvino": 0.5, "wrong": 0.1, "sentence-transformers": 2.0}

    def __init__(self, name: str, _: str, quality: float) -> None:
        self._name, self._turns = name, 0

    def __enter__(self) -> "FakeSystem":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def turn(self, *_: int) -> dict[str, Any]:
        self.order.append(self._name)
        self._turns += 1
        cpu = self.seconds[self._name] * (2 if self._turns == 1 else 1)
        vectors = self.vectors.get(self._name, [[1.0, 0.0]])
        return {"seconds": 9.0, "cpu_seconds": cpu, "vectors": vectors}


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(per_core, "System", FakeSystem)
    monkeypatch.setattr(FakeSystem, "order", [])
    return SimpleNamespace(args=[])


def test_rates_are_per_cpu_second_without_the_first_turn(context: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report = per_core.measure("m", context, "4x50", 2, "openvino,sentence-transformers")
    assert [(row["system"], row["per_cpu_second"]) for row in report["rows"]] == [
        ("openvino", 8.0),
        ("sentence-transformers", 2.0),
    ]
    assert FakeSystem.order == ["openvino", "sentence-transformers"] * 3
    assert "openvino 4.00 x, sentence-transformers 1.00 x" in capsys.readouterr().out


def test_other_vectors_end_the_measurement(context: Any) -> None:
    with pytest.raises(BenchError, match=r"wrong: cosine 0\.000000 to the first system's vectors"):
        per_core.measure("m", context, "4x50", 1, "openvino,wrong")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("openvino", ("openvino", "float32")),
        ("openvino-int8", ("openvino", "int8")),
        ("sentence-transformers", ("sentence-transformers", "float32")),
        ("sentence-transformers-bfloat16", ("sentence-transformers", "bfloat16")),
    ],
)
def test_a_system_names_its_precision_at_its_end(name: str, parts: tuple[str, str]) -> None:
    assert per_core.parts_of(name) == parts
