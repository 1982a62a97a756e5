"""The texts that are sent: random whole words of exact length, or a file's; and the requests they make up."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_perf.exact_length import ATTEMPTS, whole_words
from tritonembed_perf.failures import UsageError

TOKENS_PREPARED = 1_000_000
"""About so many tokens of different texts are made for a batch size; then they come again."""

DATASET_COLUMN = "text"

REQUESTS_PREPARED = (4, 4096)
"""At least and at most so many different requests."""


@dataclass(frozen=True)
class PooledRequest:
    """Texts of one request. tokens: of all of them, special tokens included, as the model sees them."""

    texts: tuple[str, ...]
    tokens: int


def draw_lengths(
    distribution: str, longest: int, shortest: int, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Lengths in tokens. fixed: all `longest`; uniform: `shortest` to `longest`; normal: about half of `longest`.

    normal has a standard deviation of a quarter of `longest` and is cut at both ends, as in Arctic's benchmark.
    """
    if distribution == "fixed":
        return np.full(count, longest)
    if distribution == "uniform":
        return rng.integers(shortest, longest + 1, count)
    return np.clip(rng.normal(longest / 2, longest / 4, count), shortest, longest).astype(np.int64)


class WordTexts:
    """Makes texts of random whole words of a tokenizer's vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._words = whole_words(tokenizer)

    @property
    def shortest(self) -> int:
        """Tokens of a text of one word."""
        return int(self._special) + 1

    def of_lengths(self, lengths: Sequence[int], rng: random.Random) -> list[str]:
        """One text of exactly each length, in tokens with the special ones. Raises UsageError where none is found."""
        if not self._words:
            raise UsageError("the tokenizer's vocabulary has no whole words in lower-case ASCII to make texts of")
        if min(lengths) < self.shortest:
            alone = f"a word and the special tokens are {self.shortest} already"
            raise UsageError(f"no text has a length of {min(lengths)} tokens: {alone}")
        texts = [""] * len(lengths)
        # Each word is one token; the check is for tokenizers that treat the first word of a text differently.
        missing = list(range(len(lengths)))
        for _ in range(ATTEMPTS):
            candidates = [" ".join(rng.choices(self._words, k=lengths[i] - self._special)) for i in missing]
            found = count_tokens(self._tokenizer, candidates)
            again = []
            for i, text, length in zip(missing, candidates, found, strict=True):
                if length == lengths[i]:
                    texts[i] = text
                else:
                    again.append(i)
            missing = again
            if not missing:
                return texts
        raise UsageError(f"the vocabulary's words make no text with a length of {lengths[missing[0]]} tokens")


def check_length(name: str, tokens: int, words: WordTexts, longest: int) -> None:
    """Texts of so many tokens can be made and served. Raises UsageError, which begins with `name`."""
    if tokens > longest:
        raise UsageError(f"{name}: the model takes at most {longest} tokens")
    try:
        words.of_lengths([tokens], random.Random(0))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Of each text, special tokens included."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]


def make_requests(texts: Sequence[str], tokens: Sequence[int], batch_size: int) -> list[PooledRequest]:
    """Consecutive texts, `batch_size` to a request; what is left over is not used."""
    return [
        PooledRequest(tuple(texts[start : start + batch_size]), sum(tokens[start : start + batch_size]))
        for start in range(0, len(texts) - batch_size + 1, batch_size)
    ]


def requests_to_prepare(batch_size: int, mean_length: float, wanted: int | None) -> int:
    """How many different requests are made. wanted: how many will be sent, where that is known."""
    fewest, most = REQUESTS_PREPARED
    fitting = int(TOKENS_PREPARED / (batch_size * mean_length))
    return max(1, min(max(fewest, min(fitting, most)), wanted or most))


def read_dataset(path: Path) -> list[str]:
    """The texts of a .txt, .jsonl, .csv or .parquet file, as `tritonembed embed` reads them. Raises UsageError."""
    from tritonembed.cli.failures import CommandError
    from tritonembed.cli.sources import open_source

    try:
        texts = list(open_source(str(path), DATASET_COLUMN).texts())
    except CommandError as error:
        raise UsageError(f"--dataset: {error}") from None
    if not texts:
        raise UsageError(f"--dataset: {path.name} has no texts")
    return texts
