"""From the hidden states of a flat batch to weights and vectors of its tokens.

bge-m3's formulas are FlagEmbedding's (`BGEM3FlagModel`): relu(W h + b) is the weight of a token's own id, and the
largest counts if an id occurs more than once; a token's vector is W h + b.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.mlm_head import MlmHead
from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.model.token_outputs import MultiVectorOutput, SparseOutput, TokenOutputs
from tritonembed_engine.ragged import WEIGHT, Ragged, heaviest_by_id
from tritonembed_engine.request import Choices
from tritonembed_engine.token_ids import TokenIds
from tritonembed_protocol.types import MULTI_VECTOR, SPARSE

_STANFORDS = "linear.weight"
TOKENS_AT_ONCE = 512
"""Tokens whose logits are in memory at once."""
IDS_AT_ONCE = {"cpu": 1024}
"""Ids of the vocabulary whose logits are computed at once: 2 MB of them, which a core's cache holds until the largest
of each text is found. On other devices all ids are: 60 MB for a vocabulary of 30,522."""


class Head(Protocol):
    """One output."""

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], /) -> Ragged:
        """The rows of each sentence, on the host.

        hidden: float32 [chosen tokens, hidden size]. counts: int64 [sentences]. ids: int32 [chosen tokens].
        """


class TokenHeads:
    """All outputs of a model that are made of tokens, on one device."""

    def __init__(
        self,
        outputs: TokenOutputs,
        hidden_size: int,
        device: torch.device | str = "cpu",
        transformer: Path | None = None,
    ) -> None:
        """Read the weights. Raises ModelError, which names the file, if they are missing or of another shape.

        transformer: the folder with the weights of a masked language model.
        """
        self._heads: dict[str, Head] = {}
        if outputs.sparse is not None and outputs.sparse.file is not None:
            self._heads[SPARSE] = _Weights(_linear(outputs.sparse.file, hidden_size, device, 1))
        elif outputs.sparse is not None:
            assert transformer is not None
            self._heads[SPARSE] = _Vocabulary(MlmHead(transformer, device), outputs.sparse)
        if outputs.multi_vector is not None:
            width, project = _projection(outputs.multi_vector, hidden_size, device, transformer)
            self._heads[MULTI_VECTOR] = _Vectors(width, project)

    @classmethod
    def none(cls) -> "TokenHeads":
        """For a model without such outputs."""
        return cls(TokenOutputs(), 0)

    @property
    def dimensions(self) -> int | None:
        """Of a token's vector; None if there are none."""
        head = self._heads.get(MULTI_VECTOR)
        return head.dimensions if isinstance(head, _Vectors) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs."""
        return tuple(self._heads)

    def __call__(self, hidden: torch.Tensor, sentences: TokenIds, choices: Choices) -> dict[str, Ragged]:
        """The outputs that `choices` names; waits for the device. hidden: [tokens, hidden size], of any type."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        found = {}
        for name, chosen in choices.items():
            counts = np.add.reduceat(chosen, starts, dtype=np.int64)
            states = hidden
            if not chosen.all():
                states = hidden[torch.from_numpy(np.flatnonzero(chosen)).to(hidden.device)]
            found[name] = self._heads[name](states.float(), counts, sentences.ids[chosen])
        return found


class _Weights:
    """A linear layer and relu: the weight of each token's own id."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        self._linear = linear

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> Ragged:
        weights = torch.relu(self._linear(hidden)).flatten().cpu().numpy()
        return heaviest_by_id(counts, ids, weights)


class _Vocabulary:
    """A masked language model's logits: a weight for every token of the vocabulary (sentence-transformers'
    SpladePooling)."""

    def __init__(self, head: MlmHead, output: SparseOutput) -> None:
        self._head = head
        self._output = output

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], _: npt.NDArray[np.int32]) -> Ragged:
        parts = [self._pooled(hidden[start:stop], lengths) for start, stop, lengths in _groups(counts)]
        pooled = torch.cat(parts)
        # Not a number must not vanish here: the engine refuses it.
        kept = (pooled > 0) | pooled.isnan()
        _, ids = kept.nonzero(as_tuple=True)
        weights = pooled[kept]
        if self._output.pooling == "max":
            # The activation is monotonic: that of the largest logit is the largest.
            weights = self._activated(weights)
        rows = np.empty(len(ids), WEIGHT)
        rows["id"], rows["weight"] = ids.cpu().numpy(), weights.cpu().numpy()
        return Ragged(kept.sum(1).cpu().numpy(), rows)

    def _pooled(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """float32 [sentences, vocabulary]; zeros for a sentence without tokens. Of `max`: before the activation."""
        states, size = self._head.transform(hidden), self._head.vocab_size
        pooled = hidden.new_zeros((len(lengths), size), dtype=torch.float32)
        step = IDS_AT_ONCE.get(hidden.device.type, size)
        for first in range(0, size, step):
            logits = self._head.logits(states, first, first + step)
            if self._output.pooling == "sum":
                logits = self._activated(logits)
            for row, piece in zip(pooled[:, first : first + step], logits.split(lengths), strict=True):
                if len(piece):
                    row.copy_(piece.sum(0) if self._output.pooling == "sum" else piece.amax(0))
        return pooled

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        values = values.float().relu_()
        for _ in range(self._output.logarithms):
            values = values.log1p_()
        return values


def _groups(counts: npt.NDArray[np.int64]) -> list[tuple[int, int, list[int]]]:
    """Sentences of about TOKENS_AT_ONCE tokens: the first token, the one after the last, the tokens of each."""
    groups: list[tuple[int, int, list[int]]] = []
    start = end = 0
    lengths: list[int] = []
    for count in counts.tolist():
        if lengths and end + count - start > TOKENS_AT_ONCE:
            groups.append((start, end, lengths))
            start, lengths = end, []
        lengths.append(count)
        end += count
    return [*groups, (start, end, lengths)]


class _Vectors:
    """Linear layers: the vector of each token."""

    def __init__(self, dimensions: int, project: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._project = project
        self.dimensions = dimensions

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], _: npt.NDArray[np.int32]) -> Ragged:
        return Ragged(counts, self._project(hidden).cpu().numpy())


def _projection(
    output: MultiVectorOutput, width: int, device: torch.device | str, transformer: Path | None
) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """Dimensions of a token's vector, and what makes it of a hidden state. transformer: the folder of its weights."""
    if output.file is not None:
        linear = _linear(output.file, width, device)
        return linear.out_features, linear
    if not output.in_checkpoint:
        return output.steps[-1].out_width if output.steps else width, Steps(output.steps, device)
    assert transformer is not None
    for file in checkpoint_files(transformer):
        for name, tensor in tensors_of(file):
            if name == _STANFORDS:
                weight = tensor.to(device=device, dtype=torch.float32)
                if weight.dim() != 2 or weight.shape[1] != width:
                    raise ModelError(f"the model's weight {name} has not {width} columns")
                return len(weight), partial(torch.nn.functional.linear, weight=weight)
    raise ModelError(f"the model's weights lack {_STANFORDS}")


def _linear(file: Path, width: int, device: torch.device | str, out_width: int | None = None) -> torch.nn.Linear:
    """A layer from a state dict of `weight` and `bias`. out_width: None: any."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        rows = int(state["weight"].shape[0])
        linear = torch.nn.Linear(width, out_width or rows, bias="bias" in state)
        linear.load_state_dict(state)
    except (RuntimeError, TypeError):
        raise ModelError(f"the weights in {file.name} are not those of a linear layer of {width} inputs") from None
    except Exception as error:
        raise ModelError(f"the weights in {file.name} can't be read ({type(error).__name__})") from None
    linear.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    return linear
