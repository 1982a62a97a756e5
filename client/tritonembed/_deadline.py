"""The time limit of a call, which may be many requests."""

from __future__ import annotations

import math
from time import monotonic

import grpc

from ._errors import DeadlineExceededError

# Thirty years: what is far beyond would not fit into gRPC's own clock.
LONGEST = 1e9


class Deadline:
    """Counts down from ``timeout`` seconds, from now on; None is no limit."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not math.isfinite(timeout):
            raise ValueError("timeout is a finite number of seconds, or None for no limit")
        self._end = None if timeout is None else monotonic() + min(timeout, LONGEST)

    def left(self) -> float | None:
        """Seconds left, above 0, or None; raises DeadlineExceededError once there are none."""
        if self._end is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            message = "the timeout passed before all requests were sent"
            raise DeadlineExceededError(message, grpc.StatusCode.DEADLINE_EXCEEDED)
        return left
