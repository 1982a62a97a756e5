"""Another library's exception as one line that a person can act on and a log may hold."""

import re

LONGEST = 240
"""Characters; vLLM can name every architecture it knows."""

_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")
_PATH = re.compile(r"(?<![\w./-])(?:[a-z]+:/+|~/|\.{1,2}/|/)(?:[^\s/,='\"`]+/)*(?=[^\s/,='\"`])")
"""All of a path or URL but its last part."""


def reason_of(error: BaseException, folder: str = "") -> str:
    """The first sentence of what an exception says, without paths; its type where that alone tells what went wrong.

    folder: the model's, which may hold blanks; of it, too, the last part is left.
    """
    line = _first_line(error)
    if folder:
        line = line.replace(folder, folder.rstrip("/").rpartition("/")[2])
    line = _SENTENCE_END.split(_PATH.sub("", line), maxsplit=1)[0].rstrip(". ")
    if len(line) > LONGEST:
        line = line[: LONGEST - 1] + "…"
    kind = type(error).__name__
    # Those are raised with a sentence; the text of others (KeyError: 'x', error: unpack …) is half of one.
    return line if line and isinstance(error, ValueError | RuntimeError) else ": ".join(filter(None, (kind, line)))


def _first_line(error: BaseException) -> str:
    # pydantic, which checks vLLM's configuration, puts what is wrong on its third line.
    listed = getattr(error, "errors", None)
    if callable(listed) and (problems := listed()):
        first = problems[0]
        where = ".".join(map(str, first["loc"][:1]))
        return ": ".join(filter(None, (where, first["msg"].removeprefix("Value error, "))))
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
