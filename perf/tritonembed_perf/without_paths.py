"""Reports are published: they name no folder of the machine they were made on."""

import re
from collections.abc import Sequence

PATH = re.compile(r"(?<![\w./:-])(?:~|\.{1,2})?/(?:[^\s/,='\"]+/)*(?=[^\s/,='\"])")


def without_paths(text: str) -> str:
    """Of every path in it only the last part is left."""
    return PATH.sub("", text)


def public_command(arguments: Sequence[str]) -> list[str]:
    """A command line as it is published: a path is its last part, wherever it stands in an argument."""
    return ["=".join(part.rstrip("/").rsplit("/", 1)[-1] for part in one.split("=")) for one in arguments]
