"""The access log: a request's id, the way it came, and a line of JSON when it has ended (--access-log).

Fields have OpenTelemetry's names; if it has no name for a field, ours begins with `tritonembed.`. No line holds a text,
a key or an address.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO
from uuid import uuid4

import grpc

from tritonembed_manager.router.interfaces import Admission

HEADER = "x-request-id"
"""The header of requests and answers, over HTTP and gRPC."""
_VALID = re.compile(r"[!-~]{1,128}")
_MOST_LINES = 10_000
"""The most lines that wait to be written; further lines are dropped and counted."""


@dataclass(frozen=True, slots=True)
class OnRecord:
    """A request. id: its caller's, or a new one. via: fields about its way here."""

    id: str
    via: Mapping[str, str]


_current: ContextVar[OnRecord | None] = ContextVar("request_on_record", default=None)


def enter(given: str | None, via: Mapping[str, str], *, is_logged: bool) -> str:
    """A request has come. Returns its id; empty if the caller sent no id and there is no log.

    given: the id that the caller sent. It is replaced if it has more than 128 characters, or characters other than
    visible ASCII.
    """
    if given is None and not is_logged:
        # The context may still hold an earlier request of the same connection.
        _current.set(None)
        return ""
    request_id = given if given is not None and _VALID.fullmatch(given) else uuid4().hex
    _current.set(OnRecord(request_id, via))
    return request_id


class AccessLog:
    """Appends lines to a file. To be called in one event loop. wall: seconds since 1970.

    name: returns clients' name of a model, for its ensemble. trace_id: returns the id of the current request's trace.
    Raises OSError if the file can't be opened.
    """

    def __init__(
        self,
        path: Path,
        name: Callable[[str], str] = str,
        trace_id: Callable[[], str] = lambda: "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._name = name
        self._trace_id = trace_id
        self._wall = wall
        self._lines: list[str] = []
        self._left_out = 0

    def ended(self, admission: Admission, code: grpc.StatusCode, seconds: float) -> None:
        """A request has ended. admission: what is known of the request."""
        if len(self._lines) >= _MOST_LINES:
            self._left_out += 1
            return
        known = _current.get()
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(self._wall(), timezone.utc).isoformat(timespec="milliseconds"),
            "tritonembed.request.id": known.id if known else "",
            **(known.via if known else {}),
            "trace_id": self._trace_id(),
            "tritonembed.tenant": admission.caller.name if admission.caller.is_tenant else "",
            "gen_ai.request.model": self._name(admission.model) if admission.model else "",
            "tritonembed.model.version": admission.version or "",
            "tritonembed.server": admission.server,
            "rpc.grpc.status_code": code.value[0],
            "tritonembed.code": code.name,
            "tritonembed.sentences": admission.sentences,
            "gen_ai.usage.input_tokens": admission.tokens,
            "tritonembed.duration_s": round(seconds, 6),
            "tritonembed.wait_s": round(admission.waited, 6),
            "tritonembed.server_s": round(admission.at_server, 6),
        }
        self._lines.append(json.dumps({name: value for name, value in line.items() if value != ""}))

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        left_out, self._left_out = self._left_out, 0
        return [*lines, json.dumps({"tritonembed.lines_left_out": left_out})] if left_out else lines

    def write(self, lines: Sequence[str]) -> None:
        """Write lines that `take` returned; to be called in a thread, because the file may be a pipe."""
        # A full disk must not end the worker.
        with suppress(OSError):
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        """Write the rest."""
        self.write(self.take())
        with suppress(OSError):
            self._file.close()
