"""The requests of a load: random whole words of the model's own tokenizer, exactly as many tokens as asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from tritonembed_manager.errors import StartError
from tritonembed_manager.tune.loads import LoadShape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tritonembed_engine.model.files import ModelFiles

SENTENCES_PREPARED = 1024
"""So many different sentences in a load: more than a batch, so that none is all repetition."""
MOST_BYTES = 32 * 1024 * 1024
"""Text in one request, as model.json allows by default."""


class PromptedTokenizer:
    """A tokenizer that puts the model's default prompt before each text, as the server does.

    Has of `tokenizers.Tokenizer` what `exact_length_texts` uses.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: str) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._prompt_tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """What a text has beside its own tokens."""
        return int(self._tokenizer.num_special_tokens_to_add(is_pair)) + self._prompt_tokens

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Any]:
        """Whole texts get the prompt; words looked at by themselves (no special tokens) do not."""
        prompted = [self._prompt + text for text in texts] if add_special_tokens else list(texts)
        encodings: list[Any] = self._tokenizer.encode_batch(prompted, add_special_tokens=add_special_tokens)
        return encodings


class RequestMaker:
    """Encoded requests for any load on one model."""

    def __init__(self, files: "ModelFiles") -> None:
        """Raises StartError where the model's tokenizer can't be loaded."""
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.tokenizer_loading import load_tokenizer

        try:
            tokenizer = load_tokenizer(files)
        except ModelError as error:
            raise StartError(f"--model: {error}") from None
        self._tokenizer = PromptedTokenizer(tokenizer, files.prompt_for(None))

    def requests(self, option: str, load: LoadShape) -> list[bytes]:
        """Serialized ModelInferRequests, several different ones. Raises StartError for a load that can't be made."""
        from tritonembed_perf.exact_length import exact_length_texts
        from tritonembed_perf.load import encode_request

        size = load.sentences
        count = max(SENTENCES_PREPARED // size, 1) * size
        try:
            texts = exact_length_texts(cast("Tokenizer", self._tokenizer), load.tokens, count, seed=load.tokens)
        except ValueError as error:
            raise StartError(f"{option} {load}: {error}") from None
        groups = [texts[first : first + size] for first in range(0, count, size)]
        if any(sum(len(text) for text in group) > MOST_BYTES for group in groups):
            raise StartError(f"{option} {load}: a request holds at most {MOST_BYTES >> 20} MiB of text")
        return [encode_request(group) for group in groups]
