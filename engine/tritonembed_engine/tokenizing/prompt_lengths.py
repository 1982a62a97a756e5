"""How many tokens of a sentence belong to its prompt, for a pooling without them (`include_prompt: false`)."""

import functools
from collections.abc import Mapping

from tritonembed_engine.model.adapters import NO_ADAPTERS, AdapterFiles, files_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.tokenizing.loading import load_tokenizer, special_ids

LONGEST_KEPT = 1024
"""Characters. The counts of longer prompts are not cached: a client's prompt may have megabytes."""


class PromptLengths:
    """Counts as sentence-transformers does: the prompt tokenized alone, without a special token at its end."""

    def __init__(self, files: ModelFiles, adapters: Mapping[str, AdapterFiles] = NO_ADAPTERS) -> None:
        """Loads the model's tokenizer if its pooling needs it. Raises ModelError."""
        self._files = files
        self._adapters = adapters
        self._tokenizer = None if files.include_prompt else load_tokenizer(files)
        self._special = frozenset[int]() if files.include_prompt else special_ids(files)
        self._count = functools.lru_cache(maxsize=1024)(self._count_tokens)

    def skip(self, parameters: EmbedParameters) -> int:
        """Tokens at the start of each sentence of a request that are not pooled. Raises InvalidArgument."""
        if self._tokenizer is None:
            return 0
        prompt = files_of(self._files, self._adapters, parameters.adapter).prompt_for(
            parameters.input_type, parameters.prompt_name, parameters.prompt, parameters.instruction
        )
        if not prompt:
            return 0
        return self._count(prompt) if len(prompt) <= LONGEST_KEPT else self._count_tokens(prompt)

    def _count_tokens(self, prompt: str) -> int:
        assert self._tokenizer is not None
        # The maximum of a text without an input type, whatever the type of the request.
        direction = "left" if self._files.truncate == "START" else "right"
        self._tokenizer.enable_truncation(self._files.lengths[None], direction=direction)
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (bool(ids) and ids[-1] in self._special)
