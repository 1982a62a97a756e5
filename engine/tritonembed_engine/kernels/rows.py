"""How many rows one program of a row-wise kernel takes."""

ELEMENTS_PER_PROGRAM = 4096
"""Enough bytes in flight a program to reach the memory's speed, few enough to stay in registers."""


def rows_per_program(block: int) -> int:
    """block: a row's width, rounded up to a power of two."""
    return max(1, ELEMENTS_PER_PROGRAM // block)
