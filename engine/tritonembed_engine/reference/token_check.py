"""Sparse weights and vectors of tokens that are known to be right: computed with the reference, compared at load.

The formulas are written out here once more; they share nothing with the heads that serve.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.ragged import WEIGHT, Ragged
from tritonembed_engine.token_ids import TokenIds
from tritonembed_protocol.types import MULTI_VECTOR, SPARSE

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.reference.cases import Case

MOST_IN_FLOAT32 = 1e-4
"""1 - cosine, of every text or token."""

MOST_ON_AVERAGE = 0.05
"""The mean of 1 - cosine in 16 or fewer bits, in which single tokens differ by much more than most. Vectors of other
tokens, or of a wrongly applied head, are much farther off."""

_NONE = 2.0
CASES, LONGEST = 12, 128
"""The first cases up to a number of tokens: a head is the same for every token."""


def chosen_cases(cases: "Sequence[Case]") -> "list[Case]":
    """The cases whose outputs per token are part of the reference."""
    return [case for case in cases if case.tokens <= LONGEST][:CASES]


def expected_outputs(files: "ModelFiles", model: Any, cases: "Sequence[Case]") -> dict[str, Ragged]:
    """Every output per token of the chosen cases, all tokens of a text included, in float32.

    model: transformers' encoder, of the reference.
    """
    outputs = files.token_outputs
    found: dict[str, list[Any]] = {name: [] for name in outputs.per_token}
    masked = _masked_lm(files) if outputs.sparse is not None and outputs.sparse.file is None else None
    with torch.inference_mode():
        for case in chosen_cases(cases):
            ids = np.frombuffer(case.ids, dtype="<i4")
            inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
            hidden = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).last_hidden_state[0].float()
            if outputs.sparse is not None:
                if masked is not None:
                    weights = _splade(
                        masked(**inputs).logits[0].float(), outputs.sparse.pooling, outputs.sparse.logarithms
                    )
                else:
                    weights = _own_weights(_apply(outputs.sparse.file, hidden)[:, 0], ids)
                found[SPARSE].append(weights)
            if outputs.multi_vector is not None:
                found[MULTI_VECTOR].append(_project(files, hidden).numpy())
    return {
        name: Ragged(np.array([len(one) for one in rows], np.int64), np.concatenate(rows))
        for name, rows in found.items()
    }


def distances_of(
    executor: "Executor", cases: "Sequence[Case]", expected: Mapping[str, Ragged]
) -> dict[str, npt.NDArray[np.float64]]:
    """For each output, 1 - cosine of each text's weights or of each token's vector; 2 if one is not finite."""
    sentences = TokenIds.join([case.ids for case in chosen_cases(cases)])
    everything = dict.fromkeys(expected, np.ones(sentences.tokens, np.bool_))
    pending = executor.launch(sentences, choices=everything)
    pending.result()
    return {name: _distances(pending.token_outputs[name], theirs) for name, theirs in expected.items()}


def _distances(ours: Ragged, theirs: Ragged) -> npt.NDArray[np.float64]:
    if not ours.is_finite():
        return np.array([_NONE])
    if theirs.rows.dtype == WEIGHT:
        pairs = zip(ours.bounds(), theirs.bounds(), strict=True)
        return np.array([_sparse_distance(ours.rows[a:b], theirs.rows[c:d]) for (a, b), (c, d) in pairs])
    if ours.rows.shape != theirs.rows.shape:
        return np.array([_NONE])
    return _cosine_distances(ours.rows, theirs.rows)


def _sparse_distance(ours: Any, theirs: Any) -> float:
    ids = np.union1d(ours["id"], theirs["id"])
    if not len(ids):
        return 0.0
    rows = np.zeros((2, len(ids)), np.float32)
    for row, one in zip(rows, (ours, theirs), strict=True):
        row[np.searchsorted(ids, one["id"])] = one["weight"]
    return float(_cosine_distances(rows[:1], rows[1:])[0])


def _cosine_distances(ours: Any, theirs: Any) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    both_zero = ~(ours.any(axis=1) | theirs.any(axis=1))
    cosines = np.einsum("ij,ij->i", ours, theirs, dtype=np.float64) / np.maximum(norms, 1e-12)
    return np.where(both_zero, 0.0, 1 - cosines)


def _masked_lm(files: "ModelFiles") -> Any:
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(files.transformer, dtype=torch.float32, local_files_only=True).eval()


def _splade(logits: torch.Tensor, pooling: str, logarithms: int) -> Any:
    """logits: [tokens, vocabulary]."""
    values = torch.relu(logits)
    for _ in range(logarithms):
        values = torch.log1p(values)
    pooled = values.max(dim=0).values if pooling == "max" else values.sum(dim=0)
    ids = pooled.nonzero()[:, 0]
    return _rows(ids.numpy(), pooled[ids].numpy())


def _own_weights(weights: torch.Tensor, ids: Any) -> Any:
    """The largest weight above 0 of each id. weights: [tokens]."""
    largest: dict[int, float] = {}
    for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            largest[token] = max(weight, largest.get(token, 0.0))
    return _rows(np.array(sorted(largest), np.int32), np.array([largest[token] for token in sorted(largest)]))


def _rows(ids: Any, weights: Any) -> Any:
    rows = np.empty(len(ids), WEIGHT)
    rows["id"], rows["weight"] = ids, weights
    return rows


def _apply(file: Any, hidden: torch.Tensor) -> torch.Tensor:
    state = torch.load(file, map_location="cpu", weights_only=True)
    return hidden @ state["weight"].float().T + state.get("bias", torch.zeros(1)).float()


def _project(files: "ModelFiles", hidden: torch.Tensor) -> torch.Tensor:
    output = files.token_outputs.multi_vector
    assert output is not None
    if output.file is not None:
        return _apply(output.file, hidden)
    if not output.in_checkpoint:
        projected: torch.Tensor = Steps(output.steps)(hidden)
        return projected
    tensors = dict(pair for file in checkpoint_files(files.transformer) for pair in tensors_of(file))
    return hidden @ tensors["linear.weight"].float().T
