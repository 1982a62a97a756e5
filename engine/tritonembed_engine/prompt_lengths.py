"""How many tokens of a sentence are its prompt's, for a pooling that leaves them out (`include_prompt: false`)."""

import functools

from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.tokenizer_loading import load_tokenizer


class PromptLengths:
    """Counts as sentence-transformers does: the prompt tokenized alone, without a special token at its end."""

    def __init__(self, files: ModelFiles) -> None:
        """Loads the model's tokenizer, if its pooling asks for it. Raises ModelError."""
        self._files = files
        self._tokenizer = None if files.include_prompt else load_tokenizer(files)
        self._count = functools.lru_cache(maxsize=1024)(self._count_tokens)

    def skip(self, parameters: EmbedParameters) -> int:
        """Tokens at the start of each sentence of a request that are not pooled. Raises InvalidArgument."""
        if self._tokenizer is None:
            return 0
        prompt = self._files.prompt_for(parameters.input_type, parameters.prompt_name, parameters.prompt)
        return self._count(prompt, self._files.lengths[parameters.input_type]) if prompt else 0

    def _count_tokens(self, prompt: str, limit: int) -> int:
        assert self._tokenizer is not None
        encoding = self._tokenizer.encode(prompt)
        # Truncation keeps a special token at the end.
        ends_special = bool(encoding.ids) and bool(encoding.special_tokens_mask[-1])
        return min(len(encoding.ids), limit) - ends_special
