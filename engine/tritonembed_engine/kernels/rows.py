"""How work is dealt to programs: rows of a row-wise kernel, sentences of attention."""

ELEMENTS_PER_PROGRAM = 4096
"""Enough bytes in flight a program to reach the memory's speed, few enough to stay in registers."""


def rows_per_program(block: int) -> int:
    """block: a row's width, rounded up to a power of two."""
    return max(1, ELEMENTS_PER_PROGRAM // block)


def sentence_programs(sentences: int, tokens: int, longest: int) -> int:
    """How many programs share the sentences, each taking one after the other with this many between.

    Twice what `tokens` make of the longest sentences: a batch of these has a program for each. A CUDA graph has rows
    for many more, shorter ones; a program for every row would cost more than the attention of a batch of long ones
    (225 µs instead of 139 for 64 x 512 tokens in a graph of 2,112 rows, on an H100).
    """
    return max(1, min(sentences, 2 * -(-tokens // longest)))
