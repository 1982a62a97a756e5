"""The tokens of a part of a text, for late chunking: the text goes through the model whole, then parts are pooled."""

from bisect import bisect_right
from collections.abc import Sequence

from tritonembed_engine.chunks import Span
from tritonembed_engine.errors import InvalidArgument


def tokens_of(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str, prompt: int, index: int
) -> list[Span]:
    """The tokens of each span.

    offsets: start and end of each token in characters of the prompt and the text; a token that the tokenizer added has
    none. spans: start and end in characters of the text. prompt: its characters. index: of the text, for errors. A
    token is part of the span that holds its last character, so spans that divide a text share no token. A token without
    a place, such as RoBERTa's for a lone space, counts between two tokens of a span.
    Raises InvalidArgument for a span that is not within the text or has no token.
    """
    own = [number for number, (start, end) in enumerate(offsets) if start < end]
    lasts = [offsets[number][1] - 1 - prompt for number in own]
    found = []
    for number, (start, end) in enumerate(spans):
        if not start < end <= len(text):
            raise InvalidArgument(
                "spans", f"span {number} of sentence {index} is not within its {len(text)} characters"
            )
        first, stop = bisect_right(lasts, start - 1), bisect_right(lasts, end - 1)
        if first == stop:
            raise InvalidArgument("spans", f"span {number} of sentence {index} has no tokens")
        found.append(Span(own[first], own[stop - 1] + 1, start, end))
    return found
