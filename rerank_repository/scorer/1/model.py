"""Triton model `scorer`: token_ids BYTES -> score FP32 [batch, labels], num_tokens INT32."""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

import triton_python_backend_utils as pb_utils

from tritonembed_engine.parameters import check_space
from tritonembed_engine.replica import Asked, Replica
from tritonembed_engine.scores import activate, parse_score_parameters


class _Pairs(Asked):
    """A request for the scores of pairs or texts."""

    def __init__(self, triton, activation, salt):
        super().__init__(triton, salt=salt)
        self.activation = activation


class TritonPythonModel(Replica):
    """One replica of a reranker or classifier."""

    def ask(self, request):
        """See `Replica`."""
        parameters = parse_score_parameters(request.parameters())
        check_space(parameters.embedding_space, self.space)
        activation = parameters.activation or self.files.classifier.activation.value
        return _Pairs(request, activation, parameters.salt)

    def tensors(self, asked, found):
        """See `Replica`."""
        num_tokens = asked.request.sentences.lengths.reshape(-1, 1)
        return [pb_utils.Tensor("score", activate(found, asked.activation)), pb_utils.Tensor("num_tokens", num_tokens)]
