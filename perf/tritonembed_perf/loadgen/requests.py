"""The requests of a load: texts of random whole words with exact lengths, or a file's; serialized beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_manager.errors import StartError
from tritonembed_manager.tune.loadgen.load import encode_request
from tritonembed_manager.tune.loads import LoadShape, exact_length_texts, parse_load
from tritonembed_perf.failures import UsageError

TOKENS_PREPARED = 1_000_000
"""About how many tokens of different texts are made for a batch size; then they come again."""

FEWEST_PREPARED, MOST_PREPARED = 4, 4096
"""Different requests."""

TEXTS = 1024
DATASET_COLUMN = "text"


@dataclass(frozen=True)
class PooledRequest:
    """Texts of one request. tokens: of all of them, special tokens included, as the model sees them."""

    texts: tuple[str, ...]
    tokens: int


def parse_loads(text: str) -> list[LoadShape]:
    """Reads loads such as `50x64@4,50x1@16`. Raises UsageError."""
    try:
        return [parse_load("--loads", part) for part in text.split(",")]
    except StartError as error:
        raise UsageError(str(error)) from None


def encoded_requests(tokenizer: Tokenizer, load: LoadShape, texts: int = TEXTS) -> list[bytes]:
    """Requests of the load's shape with about `texts` different texts in all; at least one request."""
    made = exact_length_texts(tokenizer, load.tokens, max(texts, load.sentences), seed=load.tokens)
    starts = range(0, len(made) - load.sentences + 1, load.sentences)
    return [encode_request(made[start : start + load.sentences]) for start in starts]


def make_requests(texts: Sequence[str], tokens: Sequence[int], batch_size: int) -> list[PooledRequest]:
    """Consecutive texts, `batch_size` to a request; what is left over is not used."""
    return [
        PooledRequest(tuple(texts[start : start + batch_size]), sum(tokens[start : start + batch_size]))
        for start in range(0, len(texts) - batch_size + 1, batch_size)
    ]


def requests_to_prepare(batch_size: int, mean_length: float, wanted: int | None) -> int:
    """How many different requests are made. wanted: how many will be sent, if that is known."""
    fitting = int(TOKENS_PREPARED / (batch_size * mean_length))
    return max(1, min(max(FEWEST_PREPARED, min(fitting, MOST_PREPARED)), wanted or MOST_PREPARED))


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
