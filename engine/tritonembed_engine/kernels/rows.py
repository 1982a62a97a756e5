"""How work is dealt to programs: rows of a row-wise kernel, sentences of attention.

Kernels are not specialized on either number (`do_not_specialize`): they would be compiled again, while requests wait,
for the first batch that is no multiple of 16.
"""

ELEMENTS_PER_PROGRAM = 4096
"""Enough bytes in flight a program to reach the memory's speed, few enough to stay in registers."""


def rows_per_program(block: int) -> int:
    """block: a row's width, rounded up to a power of two."""
    return max(1, ELEMENTS_PER_PROGRAM // block)


FEWEST_SENTENCE_PROGRAMS = 32
"""As many as a small batch's sentences run at the same moment, whatever their length."""


def sentence_programs(sentences: int, tokens: int, longest: int) -> int:
    """How many programs share the sentences, each taking one after the other with this many between.

    Twice what `tokens` make of the longest sentences: a batch of these has a program for each. A CUDA graph has rows
    for many more, shorter ones, and a program for each of these would cost a batch of long ones as much again.
    """
    return max(1, min(sentences, max(FEWEST_SENTENCE_PROGRAMS, 2 * -(-tokens // longest))))
