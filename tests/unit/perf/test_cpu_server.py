"""A server's rate on a CPU is per CPU second of its processes, and only of texts with the stated number of tokens."""

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.failures import BenchError
from tritonembed_perf.scripts import cpu_server


class FakeClient:
    tokens: ClassVar = 50
    embedded: ClassVar = 0

    def __init__(self, target: str) -> None:
        pass

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def embed(self, texts: list[str]) -> Any:
        FakeClient.embedded += len(texts)
        return SimpleNamespace(num_tokens=np.full(len(texts), self.tokens))


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options of the servers that were started. Each sentence takes a CPU second, after the start."""
    given: list[list[str]] = []

    @contextlib.contextmanager
    def running_server(model: str, arguments: list[str]) -> Iterator[Any]:
        given.append(arguments)
        yield SimpleNamespace(target="a", process=SimpleNamespace(pid=1))

    monkeypatch.setattr(cpu_server, "running_server", running_server)
    monkeypatch.setattr(cpu_server, "server_memory_mib", lambda pid: 300.0)
    monkeypatch.setattr(cpu_server, "EmbeddingClient", FakeClient)
    monkeypatch.setattr(cpu_server, "texts_of", lambda folder, sentences, tokens: ["a"] * sentences)
    monkeypatch.setattr(cpu_server, "_cpu_seconds", lambda server: 100.0 + FakeClient.embedded)
    monkeypatch.setattr(cpu_server, "LEAST_SECONDS", 0)
    monkeypatch.setattr(cpu_server.time, "perf_counter", itertools.count().__next__)
    return given


def test_precisions_take_turns_and_rates_are_per_cpu_second(options: list[list[str]]) -> None:
    report = cpu_server.served("m", SimpleNamespace(), "4x50", 2, "float32,int8")  # type: ignore[arg-type]
    assert options == [["--device", "cpu"], ["--device", "cpu", "--quantization", "int8"]]
    assert [(row["precision"], row["per_cpu_second"], row["p50_ms"]) for row in report["rows"]] == [
        ("float32", 1.0, 1000.0),
        ("int8", 1.0, 1000.0),
    ]


def test_other_texts_end_the_measurement(options: list[list[str]]) -> None:
    with pytest.raises(BenchError, match=r"^the texts have \[50\] tokens, not 51$"):
        cpu_server.served("m", SimpleNamespace(), "4x51", 1, "float32")  # type: ignore[arg-type]


def test_a_start_counts_all_processes(options: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClient, "embedded", 0)
    report = cpu_server.start("m", SimpleNamespace(args=["--dtype=half"]), 2)  # type: ignore[arg-type]
    assert options == [["--device", "cpu", "--dtype=half"]] * 2
    rows = [(row["seconds"], row["cpu_seconds"], row["memory_mib"]) for row in report["rows"]]
    assert rows == [(1, 100.0, 300.0)] * 2


def test_texts_have_the_stated_number_of_tokens(shelf: ModelShelf) -> None:
    folder = shelf("bert")
    texts = cpu_server.texts_of(folder, 8, 50)
    [ids] = TextTokenizer(read_model_files(str(folder))).encode_requests(
        [([text.encode() for text in texts], EmbedParameters())]
    )
    assert [len(one) // 4 for one in ids] == [50] * 8  # type: ignore[union-attr]
    assert len(set(texts)) == 8
