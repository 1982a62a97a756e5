"""Parts: some rows of the input, and the record of their output.

An output part has the name of its input part. It is committed by its record, which is written last. A committed part is
never computed again, unless its input changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tritonembed_bulk.store import Store
from tritonembed_protocol.space import model_part

FOLDER = "_tritonembed"
"""The folder of a job's own files. Readers of data sets leave out names that begin with an underscore."""
RECORDS, ERRORS = f"{FOLDER}/parts", f"{FOLDER}/errors"
ATTEMPTS = f"{FOLDER}/attempts"
JOB, SPACE = f"{FOLDER}/job.json", f"{FOLDER}/space.json"


class Refused(Exception):
    """The job can't run, or can't go on, on this output. The message is one line."""


@dataclass(frozen=True)
class InputFile:
    """A file of the input, or the like. name: within the source. size: bytes. version: an ETag or a time."""

    name: str
    size: int
    version: str


@dataclass(frozen=True)
class Part:
    """Some rows of an input. span: the start of their span. place: where they begin in the input. amount: their share
    of the source's total, in its unit."""

    input: InputFile
    span: int
    place: str
    amount: int

    @property
    def name(self) -> str:
        """The name of the output part, without a suffix: the same for the same rows of the same file."""
        stem = re.sub(r"[^0-9A-Za-z.-]+", "-", PurePosixPath(self.input.name).stem)[:60] or "input"
        return f"{stem}-{hashlib.sha256(self.input.name.encode()).hexdigest()[:8]}-{self.place}"


@dataclass(frozen=True)
class Record:
    """The description of a committed part. rows, vectors, tokens, errors: counts. busy: seconds in which the executor
    had its sentences. files: the output's files, if any. output_bytes: their size."""

    part: str
    input: str
    size: int
    version: str
    span: int
    amount: int
    rows: int
    vectors: int
    tokens: int
    errors: int
    space: str
    output_bytes: int
    busy: float
    files: list[str] = field(default_factory=list)
    sink: Any = None
    """What the sink needs to finish."""

    def to_json(self) -> bytes:
        """One JSON object."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """Raises Refused if the text is not a record."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            raise Refused("a record of the output is damaged: it is not one of this version") from None


class Ledger:
    """The records of an output. Can be pickled."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, part: Part) -> Record | None:
        """The record of a part, if it is committed."""
        text = self.store.read(self._name(part.name))
        return None if text is None else Record.from_json(text)

    def commit(self, record: Record) -> Record:
        """Write the record, or return the record that another attempt has written before."""
        if self.store.create(self._name(record.part), record.to_json()):
            return record
        text = self.store.read(self._name(record.part))
        return record if text is None else Record.from_json(text)

    def records(self) -> list[Record]:
        """All records."""
        names = [f"{RECORDS}/{info.base_name}" for info in self.store.list(RECORDS)]
        return [Record.from_json(text) for text in self.store.read_all(sorted(names)) if text is not None]

    def forget(self, record: Record) -> None:
        """Remove a part whose input changed. The record goes first: without it the part is not committed."""
        self.store.delete(self._name(record.part))
        for name in [*record.files, f"{ERRORS}/{record.part}.parquet"]:
            self.store.delete(name)

    def current(self, inputs: Iterable[InputFile]) -> list[Record]:
        """The records of parts whose input is unchanged. Removes the other parts."""
        versions = {one.name: (one.size, one.version) for one in inputs}
        kept = []
        for record in self.records():
            if versions.get(record.input) == (record.size, record.version):
                kept.append(record)
            else:
                self.forget(record)
        return kept

    def check_job(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Note what determines the output, or compare it with the note. settings: JSON values. Raises Refused."""
        text = self.store.read(JOB)
        if text is None:
            if self.store.create(JOB, json.dumps(settings, indent=1).encode()):
                return
            text = self.store.read(JOB) or b"{}"
        elif not resume:
            raise Refused("the output has parts of a job already: go on with --resume, or choose another output")
        try:
            before = json.loads(text)
        except ValueError:
            raise Refused("job.json of the output is damaged") from None
        other = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        if other:
            words = ", ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}"[:120] for key in other)
            raise Refused(f"the output was begun with other settings: {words}")

    def check_model(self, digest: str) -> None:
        """Raise Refused if the output's vectors are of another model. digest: the space without its precision."""
        known = self.space
        if known is not None and model_part(known) != digest:
            raise _of_another_space(known, digest)

    def check_space(self, space: str) -> None:
        """Raise Refused if the output's vectors are of another space."""
        known = self.space
        if known not in (None, space):
            raise _of_another_space(str(known), space)

    @property
    def space(self) -> str | None:
        """The embedding space of the output's vectors; None if there are none yet."""
        text = self.store.read(SPACE)
        return None if text is None else str(json.loads(text)["embedding_space"])

    def claim_space(self, space: str) -> None:
        """Note the space of the output's vectors. Raises Refused if they are of another one."""
        if self.space is None:
            self.store.create(SPACE, json.dumps({"embedding_space": space}).encode())
        self.check_space(space)

    @staticmethod
    def _name(part: str) -> str:
        return f"{RECORDS}/{part}.json"


def _of_another_space(known: str, found: str) -> Refused:
    return Refused(f"the output has vectors of the space {known}, and these are of {found}: choose another output")
