"""Vectors that were computed before, and computations that several requests share. Off by default.

A raw vector depends on the token ids of its sentence, on the tokens at its start that are not pooled, and on its
adapter: dimensions, types and normalisation come later. These and the salt are the key: requests share vectors only if
they have the same salt, so that a tenant can't find out by time what another tenant has sent.

No request waits for another. Sharing is decided when a batch is launched, so each request keeps its own deadline,
client and place in the queue. If a batch fails, only its own requests fail.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from tritonembed_engine.request import Batch, CacheReport, Key
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.vectors import Vectors

_FIXED_BYTES = 300
"""Bytes that Python needs for an entry, in addition to its vector, ids and salt."""
_FLOAT32 = np.dtype("<f4")


class VectorCache:
    """Vectors by their key, in at most `max_bytes`; the least recently used are dropped first. For any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """Bytes of all entries."""

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._rows)

    def vectors(self, keys: Sequence[Key]) -> Vectors | None:
        """float32 [keys, dimensions]; None if any vector is missing, or without keys."""
        rows = []
        with self._lock:
            for key in keys:
                row = self._rows.get(key)
                if row is None:
                    return None
                rows.append(row)
            for key in keys:
                self._rows.move_to_end(key)
        return _joined(rows) if rows else None

    def plan(self, batch: Batch, launched: "Iterable[Plan]") -> "Plan | None":
        """What to compute of a batch; None for all of it, and then nothing is kept.

        launched: the plans of batches whose vectors will be there before those of this batch.
        """
        keys = batch.keys()
        if keys is None:
            return None
        plan, others = Plan(keys), [other for other in launched if other.places]
        known, places, computed = plan.known, plan.places, plan.computed
        rows = self._rows
        with self._lock:
            for number, key in enumerate(keys):
                if key is None:
                    computed.append(number)
                elif (row := rows.get(key)) is not None:
                    rows.move_to_end(key)
                    known.append((number, row))
                elif (place := places.get(key)) is not None:
                    plan.shared.append((number, plan, place))
                elif others and (other := next((each for each in others if key in each.places), None)):
                    plan.shared.append((number, other, other.places[key]))
                else:
                    places[key] = len(computed)
                    computed.append(number)
        return plan

    def keep(self, plan: "Plan") -> CacheReport:
        """Keep the computed vectors of a plan, and report on its batch."""
        before = self.bytes
        if plan.vectors is None or not plan.places:
            return plan.report()
        vectors, rows, used, most = plan.vectors, self._rows, before, self._max_bytes
        fixed = _FIXED_BYTES + vectors.shape[1] * _FLOAT32.itemsize
        with self._lock:
            for key, place in plan.places.items():
                size = fixed + len(key[0]) + len(key[2])
                if size <= most and key not in rows:
                    rows[key] = vectors[place].tobytes()
                    used += size
            evictions = 0
            while used > most:
                key, row = rows.popitem(last=False)
                used -= _FIXED_BYTES + len(key[0]) + len(key[2]) + len(row)
                evictions += 1
            self.bytes = used
        return plan.report(evictions, used - before)


class Lost(Exception):
    """A batch whose vectors others share has failed: the others have to be computed without it."""


class Plan:
    """Which sentences of a batch are computed, and where the vectors of the others come from."""

    __slots__ = ("computed", "keys", "known", "places", "shared", "vectors")

    def __init__(self, keys: list[Key | None]) -> None:
        self.keys = keys
        """Keys of the batch's sentences; None for a sentence that shares nothing."""
        self.computed: list[int] = []
        """Numbers of the sentences that are computed."""
        self.places: dict[Key, int] = {}
        """From keys of computed sentences to their places in `computed`."""
        self.known: list[tuple[int, bytes]] = []
        """Numbers of sentences, and their vectors."""
        self.shared: list[tuple[int, Plan, int]] = []
        """Numbers of sentences, and the vectors that they get: a plan, and the place in its `computed`."""
        self.vectors: Vectors | None = None
        """The vectors of `computed`, once they are there."""

    def sentences(self, batch: TokenIds) -> TokenIds:
        """The sentences to compute. batch: all sentences."""
        return batch if len(self.computed) == len(self.keys) else batch.take(self.computed)

    def report(self, evictions: int = 0, grown: int = 0) -> CacheReport:
        """What the cache did for the batch. A sentence without a key was not looked up."""
        return CacheReport(len(self.known), len(self.shared), len(self.places), evictions, grown)

    def fill(self, computed: Vectors) -> Vectors:
        """float32 [sentences of the batch, dimensions]. computed: those of `computed`. Raises Lost."""
        self.vectors = computed
        if len(computed) == len(self.keys):
            return computed
        whole = np.empty((len(self.keys), self._width()), np.float32)
        if self.computed:
            whole[self.computed] = computed
        if self.known:
            whole[[number for number, _ in self.known]] = _joined([row for _, row in self.known])
        for number, other, place in self.shared:
            if other.vectors is None:
                raise Lost
            whole[number] = other.vectors[place]
        return whole

    def _width(self) -> int:
        """Dimensions. Raises Lost."""
        if self.computed and self.vectors is not None:
            return int(self.vectors.shape[1])
        if self.known:
            return len(self.known[0][1]) // _FLOAT32.itemsize
        other = self.shared[0][1].vectors
        if other is None:
            raise Lost
        return int(other.shape[1])


def _joined(rows: Sequence[bytes]) -> Vectors:
    return np.frombuffer(b"".join(rows), _FLOAT32).reshape(len(rows), -1)
