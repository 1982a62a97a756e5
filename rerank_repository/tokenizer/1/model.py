"""Triton model `tokenizer`: query BYTES, text BYTES -> token_ids BYTES, each element the ids of one pair as
little-endian int32. Without `query`, an element has the ids of a text."""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import triton_python_backend_utils as pb_utils

from tritonembed_engine.scores import parse_score_parameters
from tritonembed_engine.stub.tokenizer import TokenizerInstance
from tritonembed_engine.stub.triton import bytes_tensor


class TritonPythonModel(TokenizerInstance):
    """One of many instances of a reranker's tokenizer."""

    def load(self, settings):
        """See `TokenizerInstance`."""
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.tokenizing.pairs import PairTokenizer

        return PairTokenizer(read_model_files(settings.model, settings.revision, settings.max_model_len))

    def ask(self, request):
        """See `TokenizerInstance`."""
        parameters = parse_score_parameters(request.parameters())
        texts = bytes_tensor(request, "text")
        queries = None
        if pb_utils.get_input_tensor_by_name(request, "query") is not None:
            queries = bytes_tensor(request, "query")
        self.check_size(sum(map(len, texts)) + sum(map(len, queries or ())))
        return texts, queries, parameters
