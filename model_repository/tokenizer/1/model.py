"""Triton model `tokenizer`: text BYTES -> token_ids BYTES, each element one sentence's ids as little-endian int32.

Instead of ids, a request can ask for the tokens as JSON (`tokens`), or for the text of ids (`decoded`).
"""

import os
import sys

# Triton's stub searches the current folder and the model's folders first. Nothing must be imported from there.
_version = os.path.dirname(os.path.abspath(__file__))
_unsafe = (_version, os.path.dirname(_version))
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and os.path.abspath(entry) not in _unsafe]

from tritonembed_engine.parameters import parse_parameters
from tritonembed_engine.stub.tokenizer import TokenizerInstance
from tritonembed_engine.stub.triton import bytes_tensor, to_bytes_tensor
from tritonembed_engine.tokenizing.inspection import DECODED, TOKENS, parse_inspect_parameters


class TritonPythonModel(TokenizerInstance):
    """One of many instances of an embedding model's tokenizer."""

    def load(self, settings):
        """See `TokenizerInstance`."""
        from tritonembed_engine.model.adapters import read_adapters
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

        template = settings.engine.instruction_template
        files = read_model_files(settings.model, settings.revision, settings.max_model_len, template)
        return TextTokenizer(files, read_adapters(settings, files))

    def ask(self, request):
        """See `TokenizerInstance`."""
        # A request that names no outputs asks for all of them.
        asked = list(request.requested_output_names())
        if asked in ([TOKENS], [DECODED]):
            return self._inspect(request, asked[0])
        parameters = parse_parameters(request.parameters())
        texts = bytes_tensor(request, "text")
        # The prompt is prepended to each text.
        prompt = parameters.prompt or parameters.instruction or ""
        self.check_size(sum(map(len, texts)) + len(prompt.encode()) * len(texts))
        return texts, parameters

    def _inspect(self, request, output):
        parameters, inspector = parse_inspect_parameters(request.parameters()), self.tokenizer.inspector
        inspect = inspector.tokens if output == TOKENS else inspector.decoded
        return to_bytes_tensor(output, inspect(bytes_tensor(request, "text"), parameters))
