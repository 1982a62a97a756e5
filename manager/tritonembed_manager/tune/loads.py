"""The load on a server: requests of so many sentences of so many tokens, so many requests at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tritonembed_manager.errors import StartError
from tritonembed_manager.machine import Device

MOST_SENTENCES = 1024
"""`max_batch_size` of the models: sentences in one request."""
MOST_AT_ONCE = 4096
"""`max_queue_size` of the models: what comes on top is refused."""
LONGER = 4
"""The second load's sentences are so many times longer than the first's, where the model takes that."""
MANY_SENTENCES = 16
MOST_SINGLE: dict[Device, int] = {"cpu": 32, "cuda": 256}
"""Single sentences that the second load has in flight at most."""
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
        if self.sentences > MOST_SENTENCES:
            raise StartError(f"{option} {self}: a request holds at most {MOST_SENTENCES} sentences")
        if self.at_once > MOST_AT_ONCE:
            raise StartError(f"{option} {self}: at most {MOST_AT_ONCE} requests can wait")


def parse_load(option: str, text: str) -> LoadShape:
    """`50x64@32`. Raises StartError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)@([1-9]\d*)", text.strip())
    if found is None:
        raise StartError(f"{option}: {text!r} is not a load such as 50x64@32 (tokens x sentences @ requests at once)")
    return LoadShape(*map(int, found.groups()))


def default_load(device: Device, max_length: int) -> LoadShape:
    """What is measured unless --load says otherwise; sentences no longer than the model takes."""
    tokens, sentences, at_once = DEFAULT[device]
    return LoadShape(min(tokens, max_length), sentences, at_once)


def second_load(loads: Sequence[LoadShape], device: Device, max_length: int) -> LoadShape:
    """A load of another shape than the first: other length, single sentences instead of many or the other way round."""
    first = loads[0]
    tokens = first.tokens * LONGER if first.tokens * LONGER <= max_length else max(first.tokens // 2, 1)
    if first.sentences == 1:
        return LoadShape(tokens, MANY_SENTENCES, max(first.at_once // MANY_SENTENCES, 4))
    return LoadShape(tokens, 1, min(first.sentences * first.at_once, MOST_SINGLE[device]))
