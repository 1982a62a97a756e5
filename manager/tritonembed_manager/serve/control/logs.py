"""The manager's log, to stderr: lines for people, or one JSON object a line. Never any text of a request."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

LOGGER = "tritonembed_manager"
_FIELDS = "fields"


def set_up(style: str) -> None:
    """Send the manager's records to stderr. style: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log(event: str, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """One line. event: a name for scripts to look for; fields: further values of the JSON object."""
    logging.getLogger(LOGGER).log(level, message, extra={_FIELDS: {"event": event, **fields}})


def warn(event: str, message: str, **fields: Any) -> None:
    """The same for what somebody may have to put right."""
    log(event, message, level=logging.WARNING, **fields)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps({**line, **getattr(record, _FIELDS, {})}, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        server = getattr(record, _FIELDS, {}).get("server")
        return f"tritonembed-manager: {f'{server}: ' if server else ''}{record.getMessage()}"
