"""Triton model `embedder`: token_ids BYTES -> embedding BYTES, num_tokens INT32; of long texts also their chunks."""

import os
import sys
from typing import NamedTuple

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import triton_python_backend_utils as pb_utils

from tritonembed_engine import chunks, vectors
from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import EmbedParameters, Kept, check_space, parse_parameters
from tritonembed_engine.replica import Asked, Replica
from tritonembed_engine.stub.triton import to_bytes_tensor
from tritonembed_protocol.framing import rows_as_bytes
from tritonembed_protocol.types import DENSE, MULTI_VECTOR, SPARSE


class _Wish(NamedTuple):
    """What parameters mean for this model. outputs: of `TokenChoice.outputs_of`. skip, normalize: as in `Request`."""

    parameters: EmbedParameters
    outputs: tuple[str, ...]
    skip: int
    normalize: bool


class _Texts(Asked):
    """A request for the vectors of texts, of their chunks or of spans in them."""

    def __init__(self, triton, wish, choice):
        parameters, self.asked, skip, normalize = wish
        super().__init__(triton, salt=parameters.salt, skip=skip, normalize=normalize, adapter=parameters.adapter)
        self.parameters, self.chunks, self.choice = parameters, None, choice
        if parameters.spans is not None:
            if "embedding" in self.outputs:
                raise InvalidArgument("spans", "are for the model embedding_chunks")
            self.elements, self.chunks, self.spans = chunks.unpack_spans(self.elements)
        elif parameters.truncate == "CHUNK":
            self.elements, self.chunks = chunks.unpack(self.elements)
        elif "embedding" not in self.outputs and "chunk_embeddings" in self.outputs:
            # A caller of `embedding_chunks`. Callers of `embedder` that name no output get the two of plain texts.
            raise InvalidArgument("truncate", "must be CHUNK for the vectors of chunks, if there are no spans")

    def tensors_of_chunks(self, found):
        """Vectors and places of the chunks, as far as they are asked for. found: float32 [chunks, dimensions]."""
        tokens = self.request.sentences.lengths if self.spans is None else self.spans.ends - self.spans.starts
        tensors = []
        if "chunk_embeddings" in self.outputs:
            rows = rows_as_bytes(vectors.encode(found, self.parameters))
            tensors.append(to_bytes_tensor("chunk_embeddings", self.chunks.split(rows)))
        if "chunk_spans" in self.outputs:
            tensors.append(to_bytes_tensor("chunk_spans", self.chunks.spans(tokens)))
        return tensors

    def choices(self, sentences):
        """See `Asked`."""
        return self.choice.choose(self.parameters, self.asked, sentences)

    def without_forward(self, sentences):
        """See `Asked`."""
        return self.choice.without_forward(self.parameters, sentences)

    def embedding_tensor(self, found):
        """Empty elements, if vectors are not asked for. found: float32 [sentences, dimensions]."""
        if DENSE not in self.asked:
            return to_bytes_tensor("embedding", [b""] * len(found))
        return to_bytes_tensor("embedding", rows_as_bytes(vectors.encode(found, self.parameters)))

    def tensors_of_tokens(self):
        """The outputs per token. Triton's ensemble takes all of them, also those that no client asks for."""
        found, tensors = self.request.token_outputs, []
        for name in (SPARSE, MULTI_VECTOR):
            if name not in self.outputs:
                continue
            if name not in self.asked:
                elements = [b""] * self.rows
            elif name == SPARSE:
                elements = vectors.sparse_elements(found[name], self.parameters, self.choice.token)
            else:
                elements = vectors.multi_vector_elements(found[name], self.parameters, self.choice.normalize)
            tensors.append(to_bytes_tensor(name, elements))
        return tensors


class TritonPythonModel(Replica):
    """One replica of an embedding model."""

    def prepare(self):
        """Read what requests are checked against."""
        from tritonembed_engine.executors.base import reason_against_spans
        from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
        from tritonembed_engine.tokenizing.token_choice import TokenChoice

        self._prompts = PromptLengths(self.files, self.adapters)
        self._choice = TokenChoice(self.files)
        self._widths = {DENSE: self.engine.executor.dimensions, MULTI_VECTOR: self.engine.executor.token_dimensions}
        self._no_spans = reason_against_spans(self.files.pooling, self.engine.executor)
        self._wish = Kept(self._wish_of)

    def ask(self, request):
        """See `Replica`."""
        return _Texts(request, self._wish(request.parameters()), self._choice)

    def _wish_of(self, raw):
        """The wish of a string of parameters. Raises InvalidArgument."""
        parameters = parse_parameters(raw)
        check_space(parameters.embedding_space, self.space_of(parameters.adapter))
        if parameters.spans is not None and self._no_spans:
            raise InvalidArgument("spans", self._no_spans)
        normalize = vectors.wants_unit_length(parameters, self.files.normalize)
        outputs = self._choice.outputs_of(parameters)
        for name, available in self._widths.items():
            if name in outputs:
                vectors.check_dimensions(parameters.dimensions, available)
        return _Wish(parameters, outputs, self._prompts.skip(parameters), normalize)

    def tensors(self, asked, found):
        """See `Replica`."""
        found = vectors.cut(found, asked.parameters, asked.normalize, self.files.truncate_dim)
        num_tokens = asked.request.sentences.lengths
        more = [] if asked.chunks is None else asked.tensors_of_chunks(found)
        tensors = []
        if asked.chunks is not None and asked.spans is None:
            found = asked.chunks.means(found, num_tokens, asked.normalize)
            num_tokens = asked.chunks.sums(num_tokens)
        if "embedding" in asked.outputs:
            tensors.append(asked.embedding_tensor(found))
        more += asked.tensors_of_tokens()
        return [*tensors, pb_utils.Tensor("num_tokens", num_tokens.reshape(-1, 1)), *more]
