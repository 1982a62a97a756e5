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
TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8192}
IDS_AT_ONCE = {"cpu": 8192, "cuda": 4096}
"""The numbers of tokens and of ids whose logits are computed at once: 16 MB of logits on a CPU, 32 MB on a GPU. Caches
hold them until the largest of each text is found. On a CPU smaller parts cost less on a quiet machine and more on a
busy machine."""


class Computed(Protocol):
    """An output on its way from the device to the host."""

    def copy(self) -> None:
        """Start the copy to the host, on the device's current stream."""

    def rows(self) -> Ragged:
        """The rows of each sentence, once the copy has ended. To be called once."""


class Head(Protocol):
    """One output."""

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], /) -> Computed:
        """Start to compute the output.

        hidden: [chosen tokens, hidden size]. counts: int64 [sentences]. ids: int32 [chosen tokens].
        """


class TokenHeads:
    """All of a model's outputs per token, on one device."""

    def __init__(
        self,
        outputs: TokenOutputs,
        hidden_size: int,
        device: torch.device | str = "cpu",
        transformer: Path | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_pool: bool = False,
    ) -> None:
        """Read the weights. Raises ModelError, which names the file, if they are missing or of another shape.

        transformer: the folder with the weights of a masked language model. dtype: of the products; None: float32.
        max_pool: use our kernel, which needs a GPU.
        """
        self.hidden_size = hidden_size
        dtype = dtype or torch.float32
        self._dtype = dtype
        self._heads: dict[str, Head] = {}
        if outputs.sparse is not None and outputs.sparse.file is not None:
            self._heads[SPARSE] = _Weights(_linear(outputs.sparse.file, hidden_size, device, dtype, 1))
        elif outputs.sparse is not None:
            assert transformer is not None
            self._heads[SPARSE] = _Vocabulary(MlmHead(transformer, device, dtype), outputs.sparse, max_pool)
        if outputs.multi_vector is not None:
            width, project = _projection(outputs.multi_vector, hidden_size, device, transformer, dtype)
            self._heads[MULTI_VECTOR] = _Vectors(width, project)

    @classmethod
    def none(cls) -> "TokenHeads":
        """Heads of a model without outputs per token."""
        return cls(TokenOutputs(), 0)

    @property
    def dimensions(self) -> int | None:
        """Length of a token's vector; None if the model has no vectors of tokens."""
        head = self._heads.get(MULTI_VECTOR)
        return head.dimensions if isinstance(head, _Vectors) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs."""
        return tuple(self._heads)

    def __call__(self, hidden: torch.Tensor, sentences: TokenIds, choices: Choices) -> dict[str, Ragged]:
        """The outputs that `choices` names; waits for the device. hidden: [tokens, hidden size], of any type."""
        computed = self.start(hidden, sentences, choices)
        for output in computed.values():
            output.copy()
        if hidden.is_cuda:
            torch.cuda.current_stream().synchronize()
        return {name: output.rows() for name, output in computed.items()}

    def start(self, hidden: torch.Tensor, sentences: TokenIds, choices: Choices) -> dict[str, Computed]:
        """Start to compute the outputs that `choices` names. hidden: [tokens, hidden size], of any type."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        hidden = hidden.to(self._dtype)
        found = {}
        for name, chosen in choices.items():
            counts = np.add.reduceat(chosen, starts, dtype=np.int64)
            states = hidden
            if not chosen.all():
                states = hidden[_to_device(np.flatnonzero(chosen), hidden.device)]
            found[name] = self._heads[name](states, counts, sentences.ids[chosen])
        return found


def _to_device(values: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy to the device without a wait: a copy from memory that is not pinned would wait for all earlier work."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Copied:
    """Tensors whose sizes the host knows."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], build: Callable[..., Ragged]) -> None:
        """build: makes the output of the tensors as arrays."""
        self._tensors = tensors
        self._build = build

    def copy(self) -> None:
        # torch keeps pinned memory for the next batch of this size.
        self._host = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            if tensor.is_cuda
            else tensor
            for tensor in self._tensors
        ]

    def rows(self) -> Ragged:
        return self._build(*(tensor.numpy() for tensor in self._host))


class _Weights:
    """A linear layer and relu: the weight of each token's own id."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        self._linear = linear

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> Computed:
        weights = torch.relu(self._linear(hidden)).flatten().float()
        return _Copied((weights,), partial(heaviest_by_id, counts, ids))


class _Vocabulary:
    """A masked language model's logits: a weight for every token of the vocabulary (sentence-transformers'
    SpladePooling)."""

    def __init__(self, head: MlmHead, output: SparseOutput, max_pool: bool) -> None:
        self._head = head
        self._output = output
        self._max_pool = max_pool

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], _: npt.NDArray[np.int32]) -> Computed:
        at_once = TOKENS_AT_ONCE[hidden.device.type]
        parts = [self._pooled(hidden[start:stop], lengths) for start, stop, lengths in _groups(counts, at_once)]
        # The activation is monotonic: the largest logit has the largest activation.
        return _Heavy(torch.cat(parts), self._activated if self._output.pooling == "max" else torch.Tensor.float)

    def _pooled(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """float32 [sentences, vocabulary]; zeros for a sentence without tokens. Of `max`: before the activation."""
        states, size = self._head.transform(hidden), self._head.vocab_size
        pooled = torch.zeros((len(lengths), size), dtype=torch.float32, device=hidden.device)
        pool = self._pooling(lengths, hidden.device)
        at_once = IDS_AT_ONCE[hidden.device.type]
        for first in range(0, size, at_once):
            logits = self._head.logits(states, first, first + at_once)
            if self._output.pooling == "sum":
                logits = self._activated(logits)
            pool(logits, pooled[:, first : first + at_once])
        return pooled

    def _pooling(self, lengths: list[int], device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], object]:
        """Write the largest values of each sentence into zeros [sentences, ids]. values: [tokens, ids]."""
        kind = self._output.pooling
        if device.type == "cuda":
            counts = _to_device(np.array(lengths, np.int64), device)
            if kind == "max" and self._max_pool:
                from tritonembed_engine.kernels.token_pools import max_pool

                cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
                return lambda values, out: max_pool(values, cu_seqlens, out)
            return lambda values, out: out.copy_(torch.segment_reduce(values, kind, lengths=counts, unsafe=True))
        ends = np.cumsum(lengths).tolist()
        # Not in torch: on a busy machine, its threads wait for each other once per text and part.
        reduce = np.add.reduce if kind == "sum" else np.maximum.reduce

        def pool(values: torch.Tensor, out: torch.Tensor) -> None:
            rows = values.float().numpy()
            for row, end, length in zip(out.numpy(), ends, lengths, strict=True):
                if length:
                    reduce(rows[end - length : end], axis=0, out=row)

        return pool

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        values = values.float().relu_()
        for _ in range(self._output.logarithms):
            values = values.log1p_()
        return values


class _Heavy:
    """The positive weights of a matrix [sentences, vocabulary]. Only the device knows their number."""

    def __init__(self, pooled: torch.Tensor, activated: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._pooled = pooled
        self._activated = activated

    def copy(self) -> None:
        # A NaN must not vanish here: the engine refuses it.
        self._kept = (self._pooled > 0) | self._pooled.isnan()
        self._counts = self._kept.sum(1)

    def rows(self) -> Ragged:
        _, ids = self._kept.nonzero(as_tuple=True)
        weights = self._activated(self._pooled[self._kept])
        rows = np.empty(len(ids), WEIGHT)
        rows["id"], rows["weight"] = ids.int().cpu().numpy(), weights.cpu().numpy()
        return Ragged(self._counts.cpu().numpy(), rows)


def _groups(counts: npt.NDArray[np.int64], at_once: int) -> list[tuple[int, int, list[int]]]:
    """Groups of sentences of about `at_once` tokens: the first token, the end, and the tokens of each sentence."""
    groups: list[tuple[int, int, list[int]]] = []
    start = end = 0
    lengths: list[int] = []
    for count in counts.tolist():
        if lengths and end + count - start > at_once:
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

    def __call__(self, hidden: torch.Tensor, counts: npt.NDArray[np.int64], _: npt.NDArray[np.int32]) -> Computed:
        found = self._project(hidden).float()
        norms = torch.linalg.vector_norm(found, dim=1)
        # The floor is torch.nn.functional.normalize's.
        found = found / norms.clamp_min(1e-12)[:, None]
        return _Copied((found, norms), lambda rows, lengths: Ragged(counts, rows, lengths))


def _projection(
    output: MultiVectorOutput, width: int, device: torch.device | str, transformer: Path | None, dtype: torch.dtype
) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """Dimensions of a token's vector, and its layers. transformer: the folder of its weights."""
    if output.file is not None:
        linear = _linear(output.file, width, device, dtype)
        return linear.out_features, linear
    if not output.in_checkpoint:
        steps = Steps(output.steps, device)
        return output.steps[-1].out_width if output.steps else width, lambda hidden: steps(hidden.float())
    assert transformer is not None
    for file in checkpoint_files(transformer):
        for name, tensor in tensors_of(file):
            if name == _STANFORDS:
                weight = tensor.to(device=device, dtype=dtype)
                if weight.dim() != 2 or weight.shape[1] != width:
                    raise ModelError(f"the model's weight {name} has not {width} columns")
                return len(weight), partial(torch.nn.functional.linear, weight=weight)
    raise ModelError(f"the model's weights lack {_STANFORDS}")


def _linear(
    file: Path, width: int, device: torch.device | str, dtype: torch.dtype, out_width: int | None = None
) -> torch.nn.Linear:
    """A layer from a state dict of `weight` and `bias`. out_width: None for any."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        rows = int(state["weight"].shape[0])
        linear = torch.nn.Linear(width, out_width or rows, bias="bias" in state)
        linear.load_state_dict(state)
    except (RuntimeError, TypeError):
        raise ModelError(f"the weights in {file.name} are not those of a linear layer of {width} inputs") from None
    except Exception as error:
        raise ModelError(f"the weights in {file.name} can't be read ({type(error).__name__})") from None
    linear.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return linear
