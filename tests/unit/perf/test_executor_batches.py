"""The batches of the scripts that measure the executor alone."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.perf.fake_loaded import fake_loaded

from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.scripts import engine
from tritonembed_perf.scripts.executor import ExecutorOptions, read_kernels


@pytest.mark.parametrize(
    ("config", "left_out"),
    [({"pad_token_id": 0}, 0), ({"pad_token_id": 2}, 2), ({"pad_token_id": 4}, 4), ({}, 1)],
)
def test_all_ids_but_paddings_are_drawn(config: dict[str, int], left_out: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = fake_loaded(tmp_path, vocab_size=5).random_ids(np.random.default_rng(0), 30, 10)
    assert ids.shape == (30, 10)
    assert ids.dtype == np.dtype("<i4")
    assert set(ids.flat) == {0, 1, 2, 3, 4} - {left_out}


@pytest.mark.parametrize("pad", [None, -1, 5])
def test_a_model_without_a_row_for_padding_gets_all_ids(pad: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": pad}))
    ids = fake_loaded(tmp_path, vocab_size=5).random_ids(np.random.default_rng(0), 30, 10)
    assert set(ids.flat) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("sentences", "tokens", "reason"),
    [
        (1, 64, None),
        (62, 64, None),
        (1024, 3, None),
        (1, 65, "the longest text of this model has 64 tokens"),
        (63, 64, "a batch holds at most 4000 tokens"),
        (1025, 1, "a batch holds at most 1024 sentences"),
    ],
)
def test_a_batch_has_limits_of_its_own(sentences: int, tokens: int, reason: str | None, tmp_path: Path) -> None:
    assert fake_loaded(tmp_path, max_length=64, most_tokens=4000).reason_against(sentences, tokens) == reason


def test_shapes_that_do_not_fit_are_left_out_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = engine.fitting([fake_loaded(tmp_path, max_length=128, most_tokens=12_000)], engine.SHAPES["cuda"])
    assert shapes == [(225, 50), (160, 50), (64, 50), (16, 50), (1, 50)]
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "655 x 50 left out: a batch holds at most 12000 tokens",
        "64 x 512 left out: the longest text of this model has 128 tokens",
        "16 x 512 left out: the longest text of this model has 128 tokens",
        "1 x 512 left out: the longest text of this model has 128 tokens",
    ]


def test_a_shape_is_read_from_the_command_line() -> None:
    assert engine.read_shape("--shapes", "64x512") == (64, 512)
    with pytest.raises(UsageError, match="--shapes: '64x' is not SENTENCESxTOKENS"):
        engine.read_shape("--shapes", "64x")


def test_it_is_an_error_if_no_shape_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "load_executor", lambda *_: fake_loaded(tmp_path, max_length=9))
    with pytest.raises(BenchError, match="none of the shapes can be measured"):
        engine.speed(ExecutorOptions("model"))


def test_precision_keeps_within_the_limits_and_shows_each_length_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches: list[list[int]] = []

    def seen(lengths: list[int]) -> None:
        batches.append(lengths)
        if lengths[0] == 100:
            raise KeyboardInterrupt

    def embed(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        return np.stack([ids[:, 0], np.ones(len(ids))], axis=1).astype(np.float32)

    loaded = fake_loaded(tmp_path, most_tokens=600, seen=seen)
    monkeypatch.setattr(engine, "load_executor", lambda *_: loaded)
    monkeypatch.setattr(engine, "reference", lambda *_: embed)
    with pytest.raises(KeyboardInterrupt):
        engine.precision(ExecutorOptions("model"))
    assert max(sum(lengths) for lengths in batches) <= 600
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["1", "2", "5", "10", "20", "50"]
    assert sum(len(lengths) for lengths in batches if lengths[0] == 50) == engine.SENTENCES_OF_LENGTH


def test_the_name_of_an_executor_can_switch_kernels() -> None:
    assert read_kernels("direct") == ("direct", {})
    assert read_kernels("direct+pooled_rows-gelu_gate") == ("direct", {"pooled_rows": True, "gelu_gate": False})
