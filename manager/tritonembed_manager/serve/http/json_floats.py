"""Vectors as JSON, many numbers at once.

`json.dumps` takes half a microsecond a number, and a request of 64 sentences has 49,152 of them. Here every number is
a row of 16 bytes, ",-1.23456789e-02" (a space where it has no minus), put together from four tables of four bytes,
column by column of a whole matrix. Nine significant digits bring back every float32 exactly.
"""

import numpy as np
import numpy.typing as npt

_AT_ONCE = 8192
"""Numbers whose intermediate results fit into a core's cache."""

_BIAS = 127
_POWERS = np.floor(np.log10(2.0) * np.arange(-_BIAS, 256 - _BIAS)).astype(np.int8)
"""By float32's exponent field: the power of ten of the smallest number that has it (field 0 is looked at apart)."""
_LOWEST, _HIGHEST = -45, 38
_SCALES = np.array([10.0 ** (8 - power) for power in range(_LOWEST, _HIGHEST + 1)])
"""By power of ten, from the lowest on: what brings nine digits before the point."""
_TEN_DIGITS = 10.0**9


def _table(entries: list[str]) -> npt.NDArray[np.uint32]:
    return np.frombuffer("".join(entries).encode(), np.uint32)


_HEADS = _table([f",{sign}{digit}." for sign in " -" for digit in range(10)])
_FOUR_DIGITS = _table([f"{number:04d}" for number in range(10_000)])
_EXPONENTS = _table([f"e{power:+03d}" for power in range(_LOWEST, _HIGHEST + 1)])


def json_rows(vectors: npt.NDArray[np.float32]) -> list[bytes]:
    """Each row of an (n, d) matrix of finite float32 as the text of a JSON list; d is at least 1."""
    count, width = vectors.shape
    rows = max(1, _AT_ONCE // width)
    return [text for at in range(0, count, rows) for text in _rows(vectors[at : at + rows])]


def _rows(vectors: npt.NDArray[np.float32]) -> list[bytes]:
    text = _format(np.ascontiguousarray(vectors, np.float32).reshape(-1)).view(np.uint8).reshape(len(vectors), -1)
    text[:, 0] = ord("[")  # instead of the comma before the first number
    return [row.tobytes() + b"]" for row in text]


def _format(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    digits, place = _nine_digits(numbers)
    # With a constant as the divisor numpy multiplies; its divmod divides.
    upper = digits // 10_000
    first = upper // 10_000
    text = np.empty((numbers.size, 4), np.uint32)
    text[:, 0] = _HEADS[first + (numbers.view(np.uint32) >> 31) * 10]
    text[:, 1] = _FOUR_DIGITS[upper - first * 10_000]
    text[:, 2] = _FOUR_DIGITS[digits - upper * 10_000]
    text[:, 3] = _EXPONENTS[place]
    return text


def _nine_digits(numbers: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """Nine digits as a whole number (0 for zero), and the power of ten of the first of them as its place in tables."""
    field = (numbers.view(np.uint32) >> 23) & 0xFF
    magnitude = np.abs(numbers).astype(np.float64)
    place = _POWERS[field].astype(np.intp)
    small = field == 0
    if small.any():
        # Numbers below 2^-126 share one field, and zero has no power at all.
        place[small] = np.floor(np.log10(np.where(magnitude == 0, 1.0, magnitude)[small]))
    place -= _LOWEST
    scaled = magnitude * _SCALES[place]
    digits = np.rint(scaled)
    # The numbers of one field span a factor of two, and so a power of ten may lie between them.
    above = digits >= _TEN_DIGITS
    place += above
    np.rint(scaled / 10, out=digits, where=above)
    return digits.astype(np.uint32), place
