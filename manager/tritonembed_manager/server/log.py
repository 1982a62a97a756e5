"""tritonserver's log: the lines worth showing, and the line that explains a failed start."""

import re
from collections import deque

from tritonembed_protocol.printable import printable

OUR_MARKER = "tritonembed: "
"""Prefix of our python models' own log lines."""

_STEP = re.compile(rf"^{OUR_MARKER}\S+: starting: (.+)$")
"""The engine's lines about the steps of an instance's start."""
_LISTENS = "Started GRPCInferenceService"
_TRITON_LINE = re.compile(r'^([IWEF])\d{4} [\d:.]+ \d+ \S+\] "?(.*?)"?$')
# vLLM's errors. Its warnings are a page of advice at every start.
_PYTHON_ERROR = re.compile(r"^(?:\([^)]*\) *)?(ERROR|CRITICAL)\b")
_STACK = re.compile(r"^ *\d+# ")
"""A stack frame that tritonserver logs when a signal ends it: an address, and the path of its program."""
_KEPT_LINES = 200
# Logged by every tritonserver that runs without a GPU.
_NOISE = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient",
    "no pinned memory pool, falling back",
)


class ServerLog:
    """Splits the log into lines, returns the lines to show and keeps the last ones for `reason`.

    everything: show all lines; otherwise only those for which `is_worth_showing` is true.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self._everything = everything
        self._unfinished = b""
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self.step = "starting tritonserver"
        """The last step of the start in the log."""
        self.size = 0
        """Bytes received so far."""

    def take(self, data: bytes) -> list[str]:
        """Receive bytes of the log. Returns the lines to show among those that `data` completes."""
        self.size += len(data)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        texts = [printable(line.decode(errors="replace")) for line in lines]
        self._last.extend(text for text in texts if text)
        for text in texts:
            if (found := _STEP.match(text)) is not None:
                self.step = found.group(1)
            elif _LISTENS in text:
                self.step = "waiting for its first vectors"
        if self._everything:
            return texts
        return [_first_line(text) for text in texts if is_worth_showing(text)]

    def our_reason(self) -> str | None:
        """The reason that one of our models gave for a failed start; None if no model gave a reason."""
        for line in self._last:
            triton = _TRITON_LINE.match(line)
            if triton and triton.group(1) == "E" and OUR_MARKER in line:
                return _first_line(triton.group(2)).partition(OUR_MARKER)[2]
        return None

    def why_no_stub(self) -> str:
        """The error of the shell or the dynamic linker for a python process that could not start, without paths."""
        others = [line for line in self._last if not _TRITON_LINE.match(line)]
        words = others[-1].split() if others else []
        return " ".join(word for word in words if not word.startswith("/")) or "no reason is known"

    def reason(self) -> str:
        """The log line that best explains why the server ended."""
        errors = [
            found.group(2) for line in self._last if (found := _TRITON_LINE.match(line)) and found.group(1) in "EF"
        ]
        errors = [error for error in errors if not any(noise in error for noise in _NOISE)]
        failed = [error for error in errors if error.startswith("failed to load")]
        if failed or errors:
            return _first_line((failed or errors)[0])
        said = [line for line in self._last if _STACK.match(line) is None]
        return said[-1] if said else "it logged nothing"


def is_worth_showing(line: str) -> bool:
    """Whether a line is a warning or an error of Triton, an error of vLLM, or our own."""
    if any(noise in line for noise in _NOISE) or _STEP.match(line) is not None:
        return False
    triton = _TRITON_LINE.match(line)
    if triton:
        return triton.group(1) != "I" or OUR_MARKER in line
    return line.startswith(OUR_MARKER) or _PYTHON_ERROR.match(line) is not None


def _first_line(message: str) -> str:
    # Triton writes a message's line breaks as the two characters \n.
    return message.split("\\n")[0].strip()
