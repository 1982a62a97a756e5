"""The choice of a request's tokens for its sparse and multi-vector outputs."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.routes import read_weights
from tritonembed_engine.model.token_outputs import MultiVectorOutput
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.ragged import WEIGHT, Ragged
from tritonembed_engine.request import TokenOutputs
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.loading import own_tokenizer
from tritonembed_engine.tokenizing.text_tokenizer import special_tokens_around
from tritonembed_protocol.types import DENSE, MULTI_VECTOR, SPARSE


def asked_outputs(parameters: EmbedParameters, names: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs that a request asks for. names: those of the model; the first is the default.

    Raises InvalidArgument for an output that the model lacks, and for options of an output that is not asked for.
    """
    asked = parameters.outputs or names[:1]
    for name in asked:
        if name not in names:
            raise InvalidArgument("outputs", f"the model gives {' and '.join(names)}, not {name}")
    for option in ("top_k", "sparse_threshold", "return_tokens"):
        if getattr(parameters, option) and SPARSE not in asked:
            raise InvalidArgument(option, "is for the output sparse, which is not asked for")
    if asked != (DENSE,) and (parameters.truncate == "CHUNK" or parameters.spans is not None):
        raise InvalidArgument("outputs", "a text in chunks or spans has dense vectors only")
    return asked


class TokenChoice:
    """Chooses the tokens of a model that has such outputs. For one thread at a time."""

    def __init__(self, files: ModelFiles) -> None:
        """Loads the model's tokenizer if it has such outputs."""
        self._outputs = files.token_outputs
        self._tokenizer: Any = None
        self._queries: _QueryWeights | None = None
        if self._outputs.per_token:
            self._tokenizer = own_tokenizer(files)
        if self._outputs.sparse is not None and self._outputs.sparse.queries is not None:
            weights = read_weights(self._outputs.sparse.queries, files.vocab_size)
            self._queries = _QueryWeights(weights, *special_tokens_around(self._tokenizer.backend_tokenizer))
        self.token = functools.lru_cache(maxsize=1 << 16)(self._token)

    def outputs_of(self, parameters: EmbedParameters) -> tuple[str, ...]:
        """As `asked_outputs`."""
        return asked_outputs(parameters, self._outputs.names)

    @property
    def normalize(self) -> bool:
        """Whether the model's own token vectors have length 1."""
        return self._outputs.multi_vector is not None and self._outputs.multi_vector.normalize

    def without_forward(self, parameters: EmbedParameters, sentences: TokenIds) -> TokenOutputs | None:
        """The outputs of a request that needs no forward pass: of queries, if their weights are in a table. Else None.

        sentences: with their special tokens, which have no weight.
        """
        if self._queries is None or self._outputs.sparse is None:
            return None
        by_default = parameters.input_type is None and self._outputs.sparse.by_default
        if parameters.input_type != "query" and not by_default:
            return None
        return {SPARSE: self._queries(sentences)}

    def choose(
        self,
        parameters: EmbedParameters,
        asked: tuple[str, ...],
        sentences: TokenIds,
    ) -> dict[str, npt.NDArray[np.bool_]]:
        """For each output, bool [tokens]: whether a token is part of it. asked: of `outputs_of`."""
        chosen: dict[str, npt.NDArray[np.bool_]] = {}
        if SPARSE in asked and self._outputs.sparse is not None:
            # A masked language model's special tokens have logits, too.
            left_out = self._without_weight if self._outputs.sparse.file else ()
            chosen[SPARSE] = ~np.isin(sentences.ids, left_out)
        if MULTI_VECTOR in asked and self._outputs.multi_vector is not None:
            kind = "query" if parameters.input_type == "query" else "document"
            chosen[MULTI_VECTOR] = self._with_vector(self._outputs.multi_vector, kind, sentences)
        return chosen

    def _with_vector(self, output: MultiVectorOutput, kind: str, sentences: TokenIds) -> npt.NDArray[np.bool_]:
        """kind: "query" or "document"."""
        kept = np.ones(sentences.tokens, np.bool_)
        if output.skips_first:
            kept[np.cumsum(sentences.lengths) - sentences.lengths] = False
        if kind in output.left_out_of and len(self._without_vector):
            kept &= ~np.isin(sentences.ids, self._without_vector)
        if output.only and kind != "query":
            kept &= np.isin(sentences.ids, output.only)
        return kept

    @functools.cached_property
    def _without_vector(self) -> npt.NDArray[np.int32]:
        """The ids of the words that ColBERT leaves out; words of several tokens stay."""
        output, own = self._outputs.multi_vector, self._tokenizer
        ids = {own.convert_tokens_to_ids(word): word for word in (output.left_out if output else ())}
        known = [
            one for one, word in ids.items() if one is not None and (one != own.unk_token_id or word == own.unk_token)
        ]
        return np.array(known, np.int32)

    @functools.cached_property
    def _without_weight(self) -> npt.NDArray[np.int32]:
        """The ids that FlagEmbedding leaves out of bge-m3's weights."""
        own = self._tokenizer
        ids = (own.cls_token_id, own.eos_token_id, own.pad_token_id, own.unk_token_id)
        return np.array([one for one in ids if one is not None], np.int32)

    def _token(self, token_id: int) -> str:
        """The vocabulary's token of an id; "" for an id without a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")


class _QueryWeights:
    """The weight of each token of a query from a table, once per id (sentence-transformers' SparseStaticEmbedding)."""

    def __init__(self, weights: npt.NDArray[np.float32], prefix: list[int], suffix: list[int]) -> None:
        """weights: float32 [vocabulary]. prefix, suffix: the special tokens around a text."""
        self._weights = weights
        self._prefix, self._suffix = prefix, suffix

    def __call__(self, sentences: TokenIds) -> Ragged:
        """The weights of each sentence; ids in ascending order, without weights of 0."""
        ids, lengths = sentences.ids, sentences.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        own = np.ones(len(ids), np.bool_)
        for index, special in enumerate(self._prefix):
            at = (ends - lengths + index)[lengths > index]
            own[at] &= ids[at] != special
        for index, special in enumerate(reversed(self._suffix)):
            at = (ends - 1 - index)[lengths > index]
            own[at] &= ids[at] != special
        own &= self._weights[ids] != 0
        sentence = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        keys = np.unique((sentence[own] << 32) | ids[own].astype(np.int64))
        rows = np.empty(len(keys), WEIGHT)
        rows["id"] = keys & 0xFFFFFFFF
        rows["weight"] = self._weights[rows["id"]]
        return Ragged(np.bincount(keys >> 32, minlength=len(lengths)).astype(np.int64), rows)
