"""Systems on a CPU take turns; rates are per CPU second of their processes, and the best network peer is named."""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_perf.compare.launching import CannotRunError
from tritonembed_perf.compare.peer import Bench
from tritonembed_perf.compare.programs import library_main
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.checks import embed_with_transformers
from tritonembed_perf.scripts import cpu_peers
from tritonembed_perf.scripts.cpu_peers import Turn

RATES = {"sentence-transformers": 10.0, "tritonembed-int8": 60.0, "infinity-emb-int8": 50.0, "tritonembed": 20.0}


def compare(names: str, rounds: int = 2) -> Any:
    context: Any = SimpleNamespace(args=[])
    return cpu_peers.compare("m", context, "4x50", rounds, names, [])


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The systems that took a turn with texts of the shape. The first turn of each is slow."""
    taken: list[str] = []

    @contextlib.contextmanager
    def started(name: str, bench: Bench) -> Iterator[Any]:
        if name == "fastembed":
            raise CannotRunError("fastembed is not installed")

        def take(texts: Sequence[str], tokens: int, seconds: float) -> Turn:
            if not seconds:
                return Turn(1, 1.0, [1.0], np.random.default_rng(len(name)).random((len(texts), 4), np.float32))
            slow = 1 if name in taken else 100
            taken.append(name)
            return Turn(2, slow * 2 * len(texts) / RATES[name], [0.25, 0.5, 0.75], np.zeros((0, 4), np.float32))

        yield take

    monkeypatch.setattr(cpu_peers, "_started", started)
    monkeypatch.setattr(cpu_peers, "texts_of", lambda folder, sentences, tokens: ["a"] * sentences)
    return taken


def test_rates_are_per_cpu_second_without_the_first_turn(order: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    report = compare("sentence-transformers,fastembed,tritonembed")
    found = [(row["system"], row["per_cpu_second"], row["p50_ms"]) for row in report["rows"]]
    assert found == [("sentence-transformers", 10.0, 500.0), ("tritonembed", 20.0, 500.0)]
    assert order == ["sentence-transformers", "tritonembed"] * 3
    assert report["missing"] == {"fastembed": "fastembed is not installed"}
    assert report["rows"][0]["nearest"] == 1 > report["rows"][1]["nearest"]
    assert "20.0   2.00 x" in capsys.readouterr().out


def test_our_rate_is_held_against_servers_of_the_same_precision(
    order: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_peers, "SYSTEMS", tuple(RATES))
    compare("sentence-transformers,infinity-emb-int8,tritonembed,tritonembed-int8", 1)
    out = capsys.readouterr().out
    assert "int8: 1.20 x the best network peer, infinity-emb-int8 (aim: 1.1 x)" in out
    assert "float32: " not in out
    with pytest.raises(UsageError, match="--systems: 'ours' is none of sentence-transformers, "):
        compare("ours")


PROGRAM = """
import json, sys
kind, model, folder = sys.argv[1:]
if model.endswith("broken"):
    sys.exit(1)
print("a library's own line\\n" + json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    vectors = [[asked["tokens"]]] * len(asked["texts"])
    print(json.dumps({"calls": 1, "cpu_seconds": 2, "latencies": [3], "vectors": vectors}), flush=True)
"""


def test_a_library_takes_turns_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library_main.py").write_text(PROGRAM)
    monkeypatch.setattr(cpu_peers, "PROGRAMS", str(tmp_path))
    with cpu_peers._started("fastembed-int8", Bench(tmp_path / "model", "int8", "cpu", 1, tmp_path)) as take:
        for _ in range(2):
            turn = take(["a", "b"], 5, 0)
            assert (turn.calls, turn.cpu_seconds, turn.latencies, turn.vectors.tolist()) == (1, 2, [3], [[5], [5]])
    broken = cpu_peers._started("fastembed", Bench(tmp_path / "broken", "float32", "cpu", 1, tmp_path))
    with pytest.raises(CannotRunError, match=r"^fastembed has ended; "):
        broken.__enter__()


def test_the_program_of_a_library_repeats_a_request_for_the_time_that_is_asked(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, texts = shelf("bert"), ["a cat sits here", "and a dog"]
    monkeypatch.setattr("sys.argv", ["program", "sentence-transformers", str(model), str(tmp_path)])
    asked = [{"texts": texts, "tokens": 6, "seconds": seconds} for seconds in (0, 0.05)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, asked))))
    library_main.main()
    ready, *turns = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"ready": True}
    expected = embed_with_transformers(read_model_files(str(model)), texts)
    for turn in turns:
        np.testing.assert_allclose(turn["vectors"], expected, atol=1e-5)
        assert turn["calls"] == len(turn["latencies"]) >= 1
    assert len(turns) == 2
    assert sum(turns[1]["latencies"]) > 0
