"""The shapes that CUDA graphs are captured for. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

LAUNCH_BOUND_TOKENS = 12288
"""Below it an eager forward costs the same whatever its size: the CPU launches more slowly than the GPU works."""

TOKENS = (
    *(64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024),
    *(1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 9216, 10240, 11264, 12288),
    *(16384, 32768, 65536),
)
TOKENS_PER_SENTENCE = 16
"""Room for sentences in a bucket: one for so many tokens."""

SMALLEST_SENTENCES = 8
LARGEST_WASTE = 1.1
"""Above the launch-bound size padding costs time: a graph serves a batch that fills it to 1 / 1.1."""


@dataclass(frozen=True, order=True)
class Bucket:
    """A graph's shape: room for tokens and sentences, and the longest sentence its attention is launched for."""

    tokens: int
    longest: int
    sentences: int

    @property
    def rows(self) -> int:
        """Sentences with those that padding takes, one for each `longest` tokens of it."""
        return self.sentences + -(-self.tokens // self.longest)

    def holds(self, tokens: int, sentences: int, longest: int) -> bool:
        """Whether a batch fits, and fills it well enough to be worth the padding."""
        fits = tokens <= self.tokens and sentences <= self.sentences and longest <= self.longest
        return fits and (self.tokens <= LAUNCH_BOUND_TOKENS or tokens * LARGEST_WASTE >= self.tokens)


def buckets(max_tokens: int, max_sentences: int, longest: Iterable[int]) -> list[Bucket]:
    """All shapes up to a batch's budget, smallest first. longest: the lengths attention distinguishes."""
    longest = sorted(longest)
    return sorted(
        Bucket(tokens, length, max(SMALLEST_SENTENCES, min(tokens // TOKENS_PER_SENTENCE, max_sentences)))
        for tokens in TOKENS
        for shorter, length in zip([0, *longest], longest, strict=False)
        # No sentence is longer than its batch: of the lengths over it, the smallest serves.
        if shorter < tokens
        if tokens <= max(max_tokens, TOKENS[0])
    )
