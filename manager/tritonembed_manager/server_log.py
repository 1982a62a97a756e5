"""tritonserver's log: which lines people see, and the one line that says why a start failed."""

import re
from collections import deque

OUR_MARKER = "tritonembed: "
"""What our python models begin their own lines with."""

_TRITON_LINE = re.compile(r'^([IWEF])\d{4} [\d:.]+ \d+ \S+\] "?(.*?)"?$')
# vLLM's errors; its warnings are a page of advice at every start.
_PYTHON_ERROR = re.compile(r"^(?:\([^)]*\) *)?(ERROR|CRITICAL)\b")
_KEPT_LINES = 200
# Logged by every tritonserver that runs without a GPU.
_NOISE = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient",
    "no pinned memory pool, falling back",
)


class ServerLog:
    """Takes the log as bytes, gives back the lines to show, and remembers what matters of the others.

    everything: show all of it; otherwise Triton's warnings, errors, and our own lines.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self._everything = everything
        self._unfinished = b""
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    def take(self, data: bytes) -> list[str]:
        """The lines to show among those that `data` completes."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        texts = [line.decode(errors="replace").rstrip() for line in lines]
        self._last.extend(text for text in texts if text)
        if self._everything:
            return texts
        return [_first_line(text) for text in texts if is_worth_showing(text)]

    def our_reason(self) -> str | None:
        """Why one of our models could not start, in its own words; None if none of them said so."""
        for line in self._last:
            triton = _TRITON_LINE.match(line)
            if triton and triton.group(1) == "E" and OUR_MARKER in line:
                return _first_line(triton.group(2)).partition(OUR_MARKER)[2]
        return None

    def reason(self) -> str:
        """Why the server ended, as well as its log tells."""
        errors = [
            found.group(2) for line in self._last if (found := _TRITON_LINE.match(line)) and found.group(1) in "EF"
        ]
        errors = [error for error in errors if not any(noise in error for noise in _NOISE)]
        failed = [error for error in errors if error.startswith("failed to load")]
        if failed or errors:
            return _first_line((failed or errors)[0])
        return self._last[-1] if self._last else "it logged nothing"


def is_worth_showing(line: str) -> bool:
    """Triton's warnings, errors, and our own lines."""
    if any(noise in line for noise in _NOISE):
        return False
    triton = _TRITON_LINE.match(line)
    if triton:
        return triton.group(1) != "I" or OUR_MARKER in line
    return line.startswith(OUR_MARKER) or _PYTHON_ERROR.match(line) is not None


def _first_line(message: str) -> str:
    # Triton writes a message's line breaks as the two characters \n.
    return message.split("\\n")[0].strip()
