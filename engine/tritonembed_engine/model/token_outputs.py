"""A model's outputs besides a vector per text: weights of tokens (sparse), and a vector per token (multi-vector).

Layouts: bge-m3's `sparse_linear.pt` and `colbert_linear.pt`, as FlagEmbedding reads them; SPLADE's modules, as
sentence-transformers 6.2 reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.modules import Step, modules_in_order
from tritonembed_engine.model.routes import read_routes
from tritonembed_protocol.types import DENSE, MULTI_VECTOR, SPARSE

SPARSE_LINEAR = "sparse_linear.pt"
COLBERT_LINEAR = "colbert_linear.pt"
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}
"""The number of logarithms, by SpladePooling's activation_function."""


@dataclass(frozen=True)
class SparseOutput:
    """Weights of tokens.

    file: the weights of bge-m3's linear layer from a token's hidden state to its weight. None: the logits of a masked
    language model give every token of the vocabulary a weight (SPLADE), with `logarithms` times log(1 + x) after relu;
    pooling: over the tokens of a text. queries: the folder of a table with the weight of each token in a query, if
    queries need no forward pass; by_default: whether a text without an input type is a query.
    """

    file: Path | None = None
    logarithms: int = 1
    pooling: Literal["max", "sum"] = "max"
    queries: Path | None = None
    by_default: bool = False


@dataclass(frozen=True)
class Expansion:
    """ColBERT's query expansion: a query is filled up to `length` tokens, which get vectors, too.

    attend: whether the query's own tokens attend to them. fixed: whether longer queries are cut to this length. token:
    that fills it; None: [MASK] or, without one, the end token.
    """

    length: int
    attend: bool
    fixed: bool
    token: str | None = None


@dataclass(frozen=True)
class MultiVectorOutput:
    """A vector per token.

    file: the weights of bge-m3's linear layer from a token's hidden state to its vector. in_checkpoint: whether it is
    `linear.weight` of the transformer's checkpoint. steps: the Dense modules, if neither is so. skips_first: whether
    the first token (CLS) has no vector. normalize: whether the model's own vectors have length 1. left_out: tokens
    without a vector, in texts of the kinds `left_out_of` ("query", "document"). only: of documents, the ids with a
    vector; empty: all.
    """

    file: Path | None = None
    in_checkpoint: bool = False
    steps: tuple[Step, ...] = ()
    skips_first: bool = True
    normalize: bool = True
    left_out: tuple[str, ...] = ()
    left_out_of: tuple[str, ...] = ("document",)
    only: tuple[int, ...] = ()
    expansion: Expansion | None = None


@dataclass(frozen=True)
class TokenOutputs:
    """A model's outputs per token; None for an output that it lacks."""

    dense: bool = True
    sparse: SparseOutput | None = None
    multi_vector: MultiVectorOutput | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every output, by the names of the parameter `outputs`; the first is the default."""
        given = ((DENSE, self.dense), (SPARSE, self.sparse), (MULTI_VECTOR, self.multi_vector))
        return tuple(name for name, has in given if has)

    @property
    def reason_against_vllm(self) -> str | None:
        """Why vLLM can't compute the tokens' states; None if it can."""
        expansion = self.multi_vector.expansion if self.multi_vector else None
        if expansion is None or expansion.attend:
            return None
        return "vLLM has no tokens that others do not see (ColBERT's query expansion)"

    @property
    def per_token(self) -> tuple[str, ...]:
        """The outputs that are made of tokens."""
        return tuple(name for name in self.names if name != DENSE)


def is_splade(folder: Path) -> bool:
    """Whether a model's modules are a masked language model and SpladePooling; of a Router, those for documents.

    Raises ModelError.
    """
    modules = _modules(folder)
    names = [name for name, _ in modules]
    if names == ["Transformer", "SpladePooling"]:
        # Without this setting the pooling would get hidden states instead of logits.
        settings = read_object(folder / modules[0][1] / "sentence_bert_config.json")
        return bool(settings.get("transformer_task") == "fill-mask")
    return names == ["MLMTransformer", "SpladePooling"]


def read_splade(folder: Path) -> SparseOutput:
    """The settings of SpladePooling and of a Router. Raises ModelError, which names what can't be followed."""
    path = _modules(folder)[1][1]
    config = read_object(folder / path / "config.json")
    pooling, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if pooling not in ("max", "sum"):
        raise ModelError(f"{path}/config.json: the pooling_strategy {str(pooling)[:40]!r} is not max or sum")
    if activation not in _LOGARITHMS:
        raise ModelError(f"{path}/config.json: the activation_function {str(activation)[:40]!r} is not known")
    routes = read_routes(folder)
    if routes is None:
        return SparseOutput(None, _LOGARITHMS[activation], pooling)
    queries = folder / routes.query
    return SparseOutput(None, _LOGARITHMS[activation], pooling, queries, routes.default == "query")


def _modules(folder: Path) -> Sequence[tuple[str, str]]:
    """Names and folders of the documents' modules."""
    routes = read_routes(folder)
    if routes is not None:
        return routes.document
    listed = read_json(folder / "modules.json")
    return modules_in_order(listed) if listed is not None else []


def read_token_outputs(folder: Path) -> TokenOutputs:
    """The outputs per token of a model's folder."""
    sparse, colbert = folder / SPARSE_LINEAR, folder / COLBERT_LINEAR
    return TokenOutputs(
        True,
        SparseOutput(sparse) if sparse.is_file() else None,
        MultiVectorOutput(colbert) if colbert.is_file() else None,
    )
