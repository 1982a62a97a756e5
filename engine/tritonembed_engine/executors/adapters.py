"""LoRA adapters in a loaded model, computed beside its own layers: rows of a batch get x·Aᵀ·Bᵀ added.

The model's weights do not change. One batch can therefore hold rows of any adapters, and a batch without adapters runs
the model untouched. Merging B·A into the weights would cost a pass over all of them per change of the adapter, and an
adapter's rows could not share a batch with others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.adapters import Pair
from tritonembed_engine.request import Adapted

_STACKED = {
    "query": ("qkv_proj", 0),
    "key": ("qkv_proj", 1),
    "value": ("qkv_proj", 2),
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""From transformers' name of a layer to vLLM's layer that contains it, and its place there."""


@dataclass(frozen=True)
class _Place:
    """Where a layer is in the served model: a module, or some of its outputs."""

    module: Any
    inputs: int
    first: int
    outputs: int


@dataclass(frozen=True)
class _Product:
    """What an adapter adds to some outputs of a module. a: [rank, inputs]. b: [outputs, rank]."""

    place: _Place
    a: torch.Tensor
    b: torch.Tensor
    of_table: bool

    def add_to(self, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        """inputs: [rows, inputs], or ids [rows] of a table. outputs: [rows, all outputs of the module], changed."""
        inner = self.a.t()[inputs] if self.of_table else inputs @ self.a.t()
        outputs.narrow(1, self.place.first, self.place.outputs).addmm_(inner, self.b.t())


class Adapters:
    """The adapters of one model."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
        """dtype, device: of the model's products."""
        self._modules = dict(model.named_modules())
        self._dtype, self._device = dtype, device
        self._products: dict[str, list[_Product]] = {}

    def add(self, name: str, pairs: Iterable[Pair]) -> None:
        """Load an adapter. Raises ModelError if the model lacks one of its layers, or has it in another shape."""
        products = []
        for pair in pairs:
            place = self._place(pair.module)
            if place is None:
                raise ModelError(f"adapter {name}: the model has no layer {pair.module[:120]}")
            wanted = (place.inputs, place.outputs)
            if (pair.a.shape[1], pair.b.shape[0]) != wanted:
                raise ModelError(
                    f"adapter {name}: it is of another base model: {pair.module[:120]} has {wanted[0]} inputs and "
                    f"{wanted[1]} outputs here, and {pair.a.shape[1]} and {pair.b.shape[0]} there"
                )
            a, b = (factor.to(self._device, self._dtype) for factor in (pair.a, pair.b))
            products.append(_Product(place, a.contiguous(), b.contiguous(), pair.of_table))
        self._products[name] = products

    @contextmanager
    def applied(self, rows: Adapted, without: Iterable[Any] = ()) -> Iterator[None]:
        """While entered, the model's forward adds the adapters' products to these rows of a batch.

        without: modules whose forward was replaced by one that reads the weights of layers inside; their own runs.
        """
        of_module: dict[Any, list[tuple[_Product, int, int]]] = defaultdict(list)
        for name, first, end in rows:
            for product in self._products[name]:
                of_module[product.place.module].append((product, first, end))
        changed: list[tuple[Any, Any]] = []
        try:
            for module in without if of_module else ():
                changed.append((module, module.__dict__.pop("forward", None)))
            for module, products in of_module.items():
                before = module.__dict__.get("forward")
                changed.append((module, before))
                module.forward = _adding(module.forward, products)
            yield
        finally:
            for module, before in reversed(changed):
                module.__dict__.pop("forward", None)
                if before is not None:
                    module.forward = before

    def close(self) -> None:
        """Let go of the model."""
        self._modules.clear()
        self._products.clear()

    def _place(self, path: str) -> _Place | None:
        """The layer with this path in transformers. The first parts of a path depend on what is around the encoder."""
        parent, _, leaf = path.rpartition(".")
        stack, part = _STACKED.get(leaf, (None, 0))
        for whole, at in ((path, None), (f"{parent}.{stack}", part)) if stack else ((path, None),):
            module = self._find(whole)
            if module is not None and (sizes := _sizes(module)) is not None:
                inputs, outputs = sizes
                if at is None:
                    return _Place(module, inputs, 0, sum(outputs))
                if at < len(outputs):
                    return _Place(module, inputs, sum(outputs[:at]), outputs[at])
        return None

    def _find(self, path: str) -> Any:
        parts = path.split(".")
        number = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        # The number of the layer and the name of its list stay.
        for start in range(max(number - 1, 0) + 1):
            end = ".".join(parts[start:])
            found = [module for name, module in self._modules.items() if f".{name}".endswith(f".{end}")]
            if len(found) == 1:
                return found[0]
        return None


def _sizes(module: Any) -> tuple[int, Sequence[int]] | None:
    """The inputs of a linear layer or a table, and the outputs of each part stacked in it; None for other modules."""
    if hasattr(module, "org_vocab_size"):
        # vLLM's word embeddings have more rows than the model's.
        return int(module.org_vocab_size), [int(module.embedding_dim)]
    if hasattr(module, "input_size") and hasattr(module, "output_size"):
        return int(module.input_size), list(getattr(module, "output_sizes", None) or [module.output_size])
    if isinstance(module, torch.nn.Linear):
        return module.in_features, [module.out_features]
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, [module.embedding_dim]
    return None


def _adding(forward: Callable[..., Any], products: Sequence[tuple[_Product, int, int]]) -> Callable[..., Any]:
    """The forward of a module with products added."""

    def adding(inputs: torch.Tensor, *more: Any, **named: Any) -> Any:
        answer = forward(inputs, *more, **named)
        # vLLM's layers also return a bias that is not added yet.
        outputs = answer[0] if isinstance(answer, tuple) else answer
        flat = outputs.flatten(0, -2)
        given = inputs.flatten() if products[0][0].of_table else inputs.flatten(0, -2)
        for product, first, end in products:
            product.add_to(flat[first:end], given[first:end])
        return answer

    return adding


def rows_of(adapted: Adapted, cu_seqlens: Any) -> list[tuple[str, int, int]]:
    """The rows of tokens. adapted: those of sentences. cu_seqlens: int [sentences + 1], on the host."""
    return [(name, int(cu_seqlens[first]), int(cu_seqlens[end])) for name, first, end in adapted]


class WithAdapter:
    """An executor whose every batch is of one adapter, for the check at load."""

    def __init__(self, executor: Any, name: str) -> None:
        self._executor = executor
        self._name = name
        self.name = f"{executor.name} (adapter {name})"

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._executor, attribute)

    def launch(self, sentences: Any, *arguments: Any, **named: Any) -> Any:
        """See Executor."""
        return self._executor.launch(sentences, *arguments, **named, adapted=[(self._name, 0, len(sentences))])
