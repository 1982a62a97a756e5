"""The number of programs of a kernel: for the rows of a row-wise kernel, and for the sentences of attention.

Kernels are not specialized on either number (`do_not_specialize`). Otherwise the first batch that is not a multiple of
16 would compile them again while requests wait.
"""

ELEMENTS_PER_PROGRAM = 4096
"""Enough bytes in flight per program to reach the memory's speed, few enough to stay in registers."""


def rows_per_program(block: int) -> int:
    """block: a row's width, rounded up to a power of two."""
    return max(1, ELEMENTS_PER_PROGRAM // block)


FEWEST_SENTENCE_PROGRAMS = 32
"""This many sentences of a small batch run at the same time, whatever their length."""


def sentence_programs(sentences: int, tokens: int, longest: int) -> int:
    """The number of programs that share the sentences. Each takes every n-th sentence, n being this number.

    It is twice the number of sentences of `longest` tokens in `tokens`, so a batch of the longest sentences has a
    program per sentence. A CUDA graph has rows for many more, shorter sentences; a program per row would double the
    cost of a batch of long sentences.
    """
    return max(1, min(sentences, max(FEWEST_SENTENCE_PROGRAMS, 2 * -(-tokens // longest))))
