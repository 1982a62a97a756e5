"""Finds texts that end their worker's process: Ray would start another process with the same part again and again.

An attempt at a part has a mark in the job's folder until it returns. A mark that stays is of a process that ended. A
part with such marks is computed alone in its process, so that no other part is blamed. After `MOST_ENDS` processes it
is computed in pieces, until the text is found. The text's row goes to the error table.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tritonembed_bulk.parts import ATTEMPTS
from tritonembed_bulk.rows import Work
from tritonembed_bulk.store import Store

MOST_ENDS = 3
"""Processes that may end with a part. There are other reasons than a text, such as lost machines or lack of memory."""
MOST_ENDS_OF_A_TEXT = 2
"""Processes that may end with one text alone, after those of its part."""
PIECES = 16
ENDED = "the worker's process ended each time that the text was in it"

Range = tuple[int, int]


class Attempts:
    """What an actor calls to compute a part, from any thread. embed: the method of its worker."""

    def __init__(self, store: Store, embed: Callable[[Work], Work]) -> None:
        self._store = store
        self._embed = embed
        self._turns = threading.Condition()
        self._inside = 0
        """The number of parts being computed; -1 for one that is alone."""
        self._waiting = 0
        """The number of parts that wait to be alone; no other part begins before them."""

    def embed(self, work: Work) -> Work:
        """Add the vectors to a part. Texts that end the process become errors."""
        ends = self._ends(work.part.name)
        with self._turn(alone=bool(ends)):
            pieces = list(self._pieces(work, ends, (0, len(work.rows))))
        return pieces[0] if len(pieces) == 1 else work.join(pieces)

    def _pieces(self, work: Work, ends: Counter[Range], texts: Range) -> Iterator[Work]:
        """The part itself, or its pieces."""
        start, stop = texts
        size = stop - start
        is_whole = size == len(work.rows)
        most = MOST_ENDS_OF_A_TEXT if size == 1 else 1
        if ends[texts] < (MOST_ENDS if is_whole else most):
            name = f"{ATTEMPTS}/{work.part.name}.{start}-{stop}.{uuid.uuid4().hex[:8]}"
            self._store.put(name, b"")
            try:
                yield self._embed(work if is_whole else work.piece(start, stop))
            finally:
                self._store.delete(name)
        elif size <= 1:
            # A piece without texts has no vectors, but knows the number of their dimensions.
            rest = self._embed(work.piece(start, start))
            rest.errors = [(int(row), ENDED) for row in work.rows[start:stop]]
            yield rest
        else:
            step = -(-size // PIECES)
            for first in range(start, stop, step):
                yield from self._pieces(work, ends, (first, min(first + step, stop)))

    def _ends(self, part: str) -> Counter[Range]:
        """Processes that ended, by the texts of the part that they had."""
        found: Counter[Range] = Counter()
        for info in self._store.list(ATTEMPTS):
            if info.base_name.startswith(f"{part}."):
                start, stop = info.base_name.removeprefix(f"{part}.").partition(".")[0].split("-")
                found[int(start), int(stop)] += 1
        return found

    @contextmanager
    def _turn(self, *, alone: bool) -> Iterator[None]:
        """Wait until the part can be computed at the same time as the running parts."""
        with self._turns:
            self._waiting += alone
            free = (lambda: self._inside == 0) if alone else (lambda: self._inside >= 0 and not self._waiting)
            self._turns.wait_for(free)
            self._waiting -= alone
            self._inside = -1 if alone else self._inside + 1
        try:
            yield
        finally:
            with self._turns:
                self._inside = 0 if alone else self._inside - 1
                self._turns.notify_all()


def forget_attempts(store: Store) -> None:
    """Remove the marks of an earlier run: its end is no part's fault."""
    for info in store.list(ATTEMPTS):
        store.delete(f"{ATTEMPTS}/{info.base_name}")
