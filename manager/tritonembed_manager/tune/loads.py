"""The load on a server: tokens per sentence, sentences per request, requests at once, and the requests themselves.

Texts are random whole words of the model's own tokenizer. Each has an exact number of tokens, on which the rate in
tokens per second depends.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import Device
from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_protocol.limits import MAX_BATCH_SIZE, MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tritonembed_engine.model.files import ModelFiles

MOST_AT_ONCE = 4096
"""`max_queue_size` of the models: further requests are refused."""
LONGER = 4
"""The second load's sentences are this many times longer than the first's, if the model takes that."""
MANY_SENTENCES = 16
MOST_SINGLE: dict[Device, int] = {"cpu": 32, "cuda": 256}
"""The most single sentences that the second load has in flight."""
SENTENCES_PREPARED = 1024
"""Different sentences in a load: more than a batch holds, so that no batch repeats one sentence."""
_TEXT_TRIES = 100
RUNS = 3
"""Runs of each load against one server: a median needs three."""
WARM_UP_S = 1.0
DEFAULT: dict[Device, tuple[int, int, int]] = {"cpu": (50, 16, 8), "cuda": (50, 64, 96)}


@dataclass(frozen=True)
class LoadShape:
    """`tokens` in a sentence (special tokens included), `sentences` in a request, `at_once` requests in flight."""

    tokens: int
    sentences: int
    at_once: int

    def __str__(self) -> str:
        return f"{self.tokens}x{self.sentences}@{self.at_once}"

    def check(self, option: str, max_length: int) -> None:
        """Raise StartError for a load that no server of this model could serve."""
        if self.tokens > max_length:
            raise StartError(f"{option} {self}: the longest text of this model has {max_length} tokens")
        if self.sentences > MAX_BATCH_SIZE:
            raise StartError(f"{option} {self}: a request holds at most {MAX_BATCH_SIZE} sentences")
        if self.at_once > MOST_AT_ONCE:
            raise StartError(f"{option} {self}: at most {MOST_AT_ONCE} requests can wait")


def parse_load(option: str, text: str) -> LoadShape:
    """`50x64@32`. Raises StartError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)@([1-9]\d*)", text.strip())
    if found is None:
        raise StartError(f"{option}: {text!r} is not a load such as 50x64@32 (tokens x sentences @ requests at once)")
    return LoadShape(*map(int, found.groups()))


def default_load(device: Device, max_length: int) -> LoadShape:
    """The load without --load; sentences no longer than the model takes."""
    tokens, sentences, at_once = DEFAULT[device]
    return LoadShape(min(tokens, max_length), sentences, at_once)


def second_load(loads: Sequence[LoadShape], device: Device, max_length: int) -> LoadShape:
    """A load of another shape than the first: other length, single sentences instead of many or the other way round."""
    first = loads[0]
    tokens = first.tokens * LONGER if first.tokens * LONGER <= max_length else max(first.tokens // 2, 1)
    if first.sentences == 1:
        return LoadShape(tokens, MANY_SENTENCES, max(first.at_once // MANY_SENTENCES, 4))
    return LoadShape(tokens, 1, min(first.sentences * first.at_once, MOST_SINGLE[device]))


class NoTextError(LoadError):
    """The vocabulary has no text of the requested length."""

    exit_code = 2


class WordTexts:
    """Makes texts of random whole words of a tokenizer's vocabulary.

    tokenizer: without truncation; of transformers: `backend_tokenizer`.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._special = int(tokenizer.num_special_tokens_to_add(is_pair=False))
        self._words = _whole_words(tokenizer)

    @property
    def shortest(self) -> int:
        """Tokens of a text of one word."""
        return self._special + 1

    def of_lengths(self, lengths: Sequence[int], rng: random.Random) -> list[str]:
        """A text of exactly each length, in tokens with special tokens. Raises NoTextError."""
        if not self._words:
            raise NoTextError("the tokenizer's vocabulary has no whole words in lower-case ASCII to make texts of")
        if min(lengths) < self.shortest:
            alone = f"a word and the special tokens have {self.shortest} already"
            raise NoTextError(f"no text has a length of {min(lengths)} tokens: {alone}")
        texts = [""] * len(lengths)
        # Each word is one token; the check is for tokenizers that treat the first word of a text differently.
        missing = list(range(len(lengths)))
        for _ in range(_TEXT_TRIES):
            candidates = [" ".join(rng.choices(self._words, k=lengths[i] - self._special)) for i in missing]
            again = []
            for i, text, length in zip(missing, candidates, count_tokens(self._tokenizer, candidates), strict=True):
                if length == lengths[i]:
                    texts[i] = text
                else:
                    again.append(i)
            missing = again
            if not missing:
                return texts
        raise NoTextError(f"the vocabulary's words make no text with a length of {lengths[missing[0]]} tokens")


def exact_length_texts(tokenizer: "Tokenizer", tokens: int, count: int, seed: int) -> list[str]:
    """`count` random texts of exactly `tokens` tokens, special tokens included. Raises NoTextError."""
    return WordTexts(tokenizer).of_lengths([tokens] * count, random.Random(seed))


def count_tokens(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[int]:
    """The tokens of each text, special tokens included."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]


def _whole_words(tokenizer: "Tokenizer") -> Sequence[str]:
    """Words of lower-case ASCII letters that are one token each, at any place in a text; sorted."""
    pieces = {piece.lstrip("Ġ▁") for piece in tokenizer.get_vocab()}
    words = sorted(piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower())
    alone = tokenizer.encode_batch_fast(words, add_special_tokens=False)
    after = tokenizer.encode_batch_fast([f"{word} {word}" for word in words], add_special_tokens=False)
    return [
        word
        for word, first, both in zip(words, alone, after, strict=True)
        if len(first.ids) == 1 and len(both.ids) == 2 and len(word) > 1
    ]


class PromptedTokenizer:
    """A tokenizer that puts the model's default prompt before each text, as the server does.

    It has the methods of `tokenizers.Tokenizer` that `exact_length_texts` uses.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: str) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._prompt_tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """Special tokens of a text, those of the prompt included."""
        return int(self._tokenizer.num_special_tokens_to_add(is_pair)) + self._prompt_tokens

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Any]:
        """Whole texts get the prompt; single words (without special tokens) do not."""
        prompted = [self._prompt + text for text in texts] if add_special_tokens else list(texts)
        encodings: list[Any] = self._tokenizer.encode_batch_fast(prompted, add_special_tokens=add_special_tokens)
        return encodings


class RequestMaker:
    """Encoded requests for any load on one model."""

    def __init__(self, files: "ModelFiles") -> None:
        """Raises StartError if the model's tokenizer can't be loaded."""
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.tokenizing.loading import load_tokenizer

        try:
            tokenizer = load_tokenizer(files)
        except ModelError as error:
            raise StartError(f"--model: {error}") from None
        self._tokenizer = PromptedTokenizer(tokenizer, files.prompt_for(None))

    def requests(self, option: str, load: LoadShape) -> list[bytes]:
        """Several different serialized ModelInferRequests. Raises StartError for a load that can't be made."""
        from tritonembed_manager.tune.loadgen.load import encode_request

        size = load.sentences
        count = max(SENTENCES_PREPARED // size, 1) * size
        try:
            texts = exact_length_texts(cast("Tokenizer", self._tokenizer), load.tokens, count, seed=load.tokens)
        except NoTextError as error:
            raise StartError(f"{option} {load}: {error}") from None
        groups = [texts[first : first + size] for first in range(0, count, size)]
        if any(sum(len(text) for text in group) > MAX_REQUEST_BYTES for group in groups):
            raise StartError(f"{option} {load}: a request holds at most {MAX_REQUEST_BYTES >> 20} MiB of text")
        return [encode_request(group) for group in groups]
