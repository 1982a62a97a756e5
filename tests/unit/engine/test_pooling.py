"""Pooling of a flat batch, and the steps after it, equal sentence-transformers', also with padding at the end."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer import modules as theirs

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors import padding
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.model.modules import Pooling, Step
from tritonembed_engine.model.steps import Steps

WIDTH = 12
LENGTHS = [1, 3, 7, 2, 16]


def batch(lengths: list[int], empty: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and cu_seqlens. Empty sentences follow the others, as in a CUDA graph."""
    hidden = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(len(lengths)))
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths), [sum(lengths)] * empty])
    return hidden, torch.from_numpy(cu_seqlens.astype(np.int32))


def expected(modes: tuple[Pooling, ...], hidden: torch.Tensor, lengths: list[int], skip: int) -> torch.Tensor:
    """sentence-transformers' Pooling over the same sentences, padded."""
    sentences = torch.split(hidden, lengths)
    padded = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] < torch.tensor(lengths)[:, None]
    pooling = theirs.Pooling(WIDTH, modes, include_prompt=not skip)
    features = {"token_embeddings": padded, "attention_mask": mask.long(), "prompt_length": skip}
    answer: torch.Tensor = pooling(features)["sentence_embedding"]
    return answer


@pytest.mark.parametrize("skip", [0, 1, 2, 5])
@pytest.mark.parametrize("empty", [0, 3])
@pytest.mark.parametrize(
    "modes",
    [*((mode,) for mode in Pooling), *itertools.combinations(Pooling, 2), (Pooling.CLS, Pooling.CLS, Pooling.MAX)],
)
def test_a_flat_batch_is_pooled_like_a_padded_batch(modes: tuple[Pooling, ...], empty: int, skip: int) -> None:
    hidden, cu_seqlens = batch(LENGTHS, empty)
    begins = cu_seqlens[:-1] + skip if skip else None
    pooled = Pooler(modes, Steps(()))(hidden, cu_seqlens, begins)
    assert pooled.shape == (len(LENGTHS) + empty, WIDTH * len(modes))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[: len(LENGTHS)], expected(modes, hidden, LENGTHS, skip))


@pytest.mark.parametrize("skip", [0, 1, 2, 5])
@pytest.mark.parametrize("modes", [*((mode,) for mode in Pooling), (Pooling.CLS, Pooling.MEAN, Pooling.MAX)])
def test_a_padded_group_is_pooled_in_numpy_as_by_sentence_transformers(modes: tuple[Pooling, ...], skip: int) -> None:
    hidden, _ = batch(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(torch.split(hidden, LENGTHS), batch_first=True, padding_value=9.0)
    found = padding.pool(modes, padded.numpy(), np.array(LENGTHS), np.full(len(LENGTHS), skip))
    torch.testing.assert_close(torch.from_numpy(found), expected(modes, hidden, LENGTHS, skip))


def test_each_sentence_leaves_out_its_own_prompt() -> None:
    hidden, cu_seqlens = batch([4, 6])
    pooled = Pooler((Pooling.MEAN,), Steps(()))(
        hidden, cu_seqlens, cu_seqlens[:-1] + torch.tensor([0, 4], dtype=torch.int32)
    )
    torch.testing.assert_close(pooled, torch.stack([hidden[:4].mean(0), hidden[8:].mean(0)]))


@pytest.mark.parametrize("mode", Pooling)
def test_16_bit_states_are_summed_in_float32(mode: Pooling) -> None:
    hidden, cu_seqlens = batch([1000])
    half = (hidden + 5).to(torch.bfloat16)
    pooled = Pooler((mode,), Steps(()))(half, cu_seqlens)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, Pooler((mode,), Steps(()))(half.float(), cu_seqlens))


def test_the_mean_of_whole_sentences_is_the_given_mean() -> None:
    hidden, cu_seqlens = batch(LENGTHS)
    pooler = Pooler(
        (Pooling.MEAN,), Steps(()), lambda hidden, cu_seqlens: torch.zeros(len(cu_seqlens) - 1, hidden.shape[1])
    )
    assert not pooler(hidden, cu_seqlens).any()
    torch.testing.assert_close(
        pooler(hidden, cu_seqlens, cu_seqlens[:-1]), expected((Pooling.MEAN,), hidden, LENGTHS, 0)
    )


ACTIVATIONS = ["activation.Tanh", "linear.Identity", "activation.GELU", "activation.PReLU", "activation.Softmax"]


def dense(folder: Path, activation: str, out: int, bias: bool, residual: bool, pickled: bool) -> theirs.Dense:
    """Saves a Dense of sentence-transformers."""
    torch.manual_seed(out)
    made = theirs.Dense(
        WIDTH, out, bias, getattr(torch.nn, activation.rpartition(".")[2])(), use_residual=residual
    ).eval()
    folder.mkdir()
    made.save(str(folder), safe_serialization=not pickled)
    return made


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "residual", "pickled"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("out", [WIDTH, 5])
@torch.inference_mode()
def test_a_dense_step_equals_sentence_transformers(
    activation: str, out: int, bias: bool, residual: bool, pickled: bool, tmp_path: Path
) -> None:
    made = dense(tmp_path / "2_Dense", activation, out, bias, residual, pickled)
    name = f"torch.nn.modules.{activation}"
    step = Step("Dense", "sentence_embedding", "sentence_embedding", tmp_path / "2_Dense", WIDTH, out, bias, residual)
    step = Step(**{**vars(step), "activation": name})
    pooled = torch.randn(3, WIDTH)
    torch.testing.assert_close(Steps([step])(pooled), made({"sentence_embedding": pooled})["sentence_embedding"])


@torch.inference_mode()
def test_steps_read_and_write_the_features_that_they_name(tmp_path: Path) -> None:
    first = dense(tmp_path / "2_Dense", "activation.Tanh", 5, True, False, False)
    norm = theirs.LayerNorm(WIDTH).eval()
    norm.norm.weight.data.normal_()
    (tmp_path / "3_LayerNorm").mkdir()
    norm.save(str(tmp_path / "3_LayerNorm"))
    pooled = torch.randn(3, WIDTH)
    features = {"sentence_embedding": pooled}
    first.module_output_name = "other"
    for module in (first, norm, theirs.Normalize(), theirs.Normalize("other", "sentence_embedding")):
        features = module(features)
    steps = Steps(
        [
            Step("Dense", target="other", folder=tmp_path / "2_Dense", width=WIDTH, out_width=5, activation=TANH),
            Step("LayerNorm", folder=tmp_path / "3_LayerNorm", width=WIDTH, out_width=WIDTH),
            Step("Normalize", width=WIDTH, out_width=WIDTH),
            Step("Normalize", source="other", width=5, out_width=5),
        ]
    )
    torch.testing.assert_close(steps(pooled), features["sentence_embedding"])


@torch.inference_mode()
def test_layer_norm_equals_sentence_transformers(tmp_path: Path) -> None:
    norm = theirs.LayerNorm(WIDTH).eval()
    norm.norm.weight.data.normal_()
    norm.norm.bias.data.normal_()
    norm.save(str(tmp_path))
    pooled = torch.randn(3, WIDTH)
    ours = Steps([Step("LayerNorm", folder=tmp_path, width=WIDTH, out_width=WIDTH)])(pooled)
    torch.testing.assert_close(ours, norm({"sentence_embedding": pooled})["sentence_embedding"])


TANH = "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize(
    ("activation", "problem"),
    [
        ("torch.nn.functional.relu", "is not a class of torch.nn"),
        ("torch.nn.Gone", "is not a class of torch.nn"),
        ("torch.nn.Threshold", "can't be made without arguments"),
        ("torch.nn.GLU", "changes the length of a vector"),
        ("torch.nn.MSELoss", "fails (TypeError)"),
        ("torch.nn.LazyBatchNorm1d", "has weights of no known shape"),
        ("torch.nn.PReLU", "are not linear.weight [12, 12], linear.bias [12], activation.weight [1]"),
    ],
)
def test_an_activation_that_takes_more_than_a_vector_is_refused(activation: str, problem: str, tmp_path: Path) -> None:
    dense(tmp_path / "2_Dense", "activation.Tanh", WIDTH, True, False, False)
    step = Step("Dense", folder=tmp_path / "2_Dense", width=WIDTH, out_width=WIDTH, activation=activation)
    with pytest.raises(ModelError) as refused:
        Steps([step])
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "weights",
    [
        {"linear.weight": torch.ones(5, WIDTH)},
        {"linear.weight": torch.ones(5, 4), "linear.bias": torch.ones(5)},
        {"linear.weight": torch.ones(5, WIDTH), "linear.bias": torch.ones(5), "more": torch.ones(1)},
    ],
)
def test_weights_of_another_shape_are_refused_by_their_folder(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"are not linear\.weight \[5, 12\], linear\.bias \[5\]$"):
        Steps([Step("Dense", folder=tmp_path, width=WIDTH, out_width=5)])


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_can_not_be_read_are_refused_by_their_folder(file: str, tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / file).write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"^the weights in 2_Dense can't be read \(\w+\)$"):
        Steps([Step("Dense", folder=tmp_path / "2_Dense", width=WIDTH, out_width=5)])


def test_pooling_for_openvino_leaves_no_thread_spinning() -> None:
    """The threads of a BLAS spin until their next product, on cores that the model's products need."""
    code = """
import time, numpy as np, psutil
from tritonembed_engine.executors.padding import pool
from tritonembed_engine.model.modules import Pooling
hidden, lengths, skips = np.ones((64, 50, 384), np.float32), np.full(64, 50), np.zeros(64, np.int64)
while time.process_time() < 1:
    pool([Pooling.MEAN], hidden, lengths, skips)
spent = sorted(thread.user_time + thread.system_time for thread in psutil.Process().threads())
print(sum(spent[:-1]) / spent[-1])
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    shared = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert float(shared.stdout) < 0.1
