"""Text of another program, fit for a terminal and a log: one line, without escape sequences and control characters."""

from __future__ import annotations

import re
from typing import Any

# ECMA-48: control sequences (CSI), command strings such as a title (OSC), and short sequences.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-Z\\^-~]"
)
# Also characters that change the direction of the text around them, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def printable(text: str) -> str:
    """The text without sequences that control a terminal; line breaks and other control characters become blanks."""
    return _CONTROLS.sub(" ", _SEQUENCES.sub("", text)).rstrip()


def printable_json(value: Any) -> Any:
    """`printable` for every string in a JSON value, the names of an object included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [printable_json(element) for element in value]
    if isinstance(value, dict):
        return {printable(name): printable_json(element) for name, element in value.items()}
    return value
