"""The log of the processes of `serve`: lines on stderr, as text or JSON, with bounded length and repeats counted.

`log` and `warn` write the manager's own lines, each with a name for scripts. A line never holds text of a request.
Records of libraries, and above all their exceptions, may hold what a client sent, such as a header or a query. So only
the constant part of such a record's message is written, and the place where its exception was raised.
"""

import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TextIO

OURS = "tritonembed_manager"
FIELDS = "fields"
"""The attribute of a record that holds further values of its JSON object."""
WINDOW_S = 10.0
"""Equal warnings within this time are counted instead of written."""
_LONGEST = 2000
"""Characters of a message."""
_MOST_KEPT = 1000
"""The most different warnings that a window counts. Further warnings are written as they come."""
_PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[-#0 +]*[\d.*]*[a-zA-Z]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass
class _Line:
    time: float
    level: str
    message: str
    fields: dict[str, Any]


@dataclass
class _Seen:
    line: _Line
    since: float
    repeats: int = 0


class LogOutput(logging.Handler):
    """Writes records. style: "text" or "json". stream: stderr by default. clock: seconds."""

    def __init__(
        self,
        style: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._form = _json if style == "json" else _text
        self._stream = stream or sys.stderr
        self._clock = clock
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. A warning that was written within the last window is only counted."""
        line = _line(record)
        if record.levelno < logging.WARNING:
            self._write(line)
            return
        now = self._clock()
        self._close_windows(now)
        key = (line.message, repr(line.fields))
        seen = self._seen.get(key)
        if seen is not None:
            seen.repeats += 1
            self._set_timer()
            return
        if len(self._seen) < _MOST_KEPT:
            self._seen[key] = _Seen(line, now)
        self._write(line)

    def flush(self) -> None:
        """Write the counts so far."""
        with self.lock or threading.RLock():
            self._close_windows(float("inf"))

    def close(self) -> None:
        """Flush, and stop the timer."""
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _close_windows(self, now: float) -> None:
        for key, seen in list(self._seen.items()):
            if now - seen.since < WINDOW_S:
                continue
            del self._seen[key]
            if seen.repeats:
                message = f"{seen.line.message} (repeated {seen.repeats} times in {WINDOW_S:g} s)"
                fields = {**seen.line.fields, "repeated": seen.repeats}
                self._write(_Line(time.time(), seen.line.level, message, fields))
                if now < float("inf"):
                    # The warning goes on: count it in the next window, too.
                    self._seen[key] = _Seen(seen.line, now)

    def _set_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(WINDOW_S, self._timer_fired)
            self._timer.daemon = True
            self._timer.start()

    def _timer_fired(self) -> None:
        with self.lock or threading.RLock():
            self._timer = None
            self._close_windows(self._clock())
            if any(seen.repeats for seen in self._seen.values()):
                self._set_timer()

    def _write(self, line: _Line) -> None:
        try:
            self._stream.write(self._form(line) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The reader of stderr has gone.
            return


def set_up(style: str) -> None:
    """Write this process' records, warnings and uncaught exceptions to stderr. style: "text" or "json"."""
    output = LogOutput(style)
    for name, level in (("", logging.WARNING), (OURS, logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [output]
        logger.setLevel(level)
    logging.getLogger(OURS).propagate = False
    logging.raiseExceptions = False
    warnings.showwarning = _warned
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.unraisablehook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


def place(traceback: TracebackType | None) -> str:
    """Module and line where an exception was raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "?"
    return f"{traceback.tb_frame.f_globals.get('__name__', '?')}, line {traceback.tb_lineno}"


def _warned(
    message: Warning | str,  # noqa: ARG001
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    # The text of a warning may hold a client's value.
    module = filename.rpartition("site-packages/")[2].rpartition("/")[2] or filename
    logging.getLogger("py.warnings").warning(f"{category.__name__} in {module}, line {lineno}")


def _uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    del error
    logging.getLogger(OURS).error("%s in %s: this is a bug", kind.__name__, place(traceback))


def _line(record: logging.LogRecord) -> _Line:
    fields = dict(getattr(record, FIELDS, {}))
    if record.name == OURS or record.name.startswith(f"{OURS}."):
        message = record.getMessage()
    else:
        fields = {"logger": record.name, **fields}
        message = _constant_part(record)
    message = _UNPRINTABLE.sub(" ", message).strip()
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]} …"
    return _Line(record.created, record.levelname.lower(), message, fields)


def _constant_part(record: logging.LogRecord) -> str:
    first = str(record.msg).partition("\n")[0]
    message = f"{record.name}: {_PLACEHOLDER.sub('…', first) if record.args else first}"
    kind, _, traceback = record.exc_info or (None, None, None)
    return message if kind is None else f"{message} ({kind.__name__} in {place(traceback)})"


def _json(line: _Line) -> str:
    time = datetime.fromtimestamp(line.time, timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": line.level, "message": line.message, **line.fields}, default=str)


def _text(line: _Line) -> str:
    server = line.fields.get("server")
    return f"tritonembed-manager: {f'{server}: ' if server else ''}{line.message}"


def log(event: str, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one line. event: its name for scripts. fields: further values of the JSON object."""
    logging.getLogger(OURS).log(level, message, extra={FIELDS: {"event": event, **fields}})


def warn(event: str, message: str, **fields: Any) -> None:
    """Write one line about a problem that an operator may have to fix. event, fields: as for `log`."""
    log(event, message, level=logging.WARNING, **fields)
