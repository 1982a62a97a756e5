"""Where embeddings go: .npy, .jsonl, .parquet or the terminal, piece by piece. A file appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tritonembed import EmbeddingResult, SparseVector
from tritonembed_protocol.printable import printable

from .failures import UsageError, usage_errors
from .sources import load_arrow

SHOWN = 4
ROWS_PER_GROUP = 8192


class Sink:
    """Writes results, in order."""

    def write(self, result: EmbeddingResult) -> None:
        """Write the next rows."""
        raise NotImplementedError

    def finish(self, empty: Callable[[], EmbeddingResult]) -> None:
        """Complete the output. ``empty`` makes a result without rows, for the shape if there were no rows."""

    def close(self) -> None:
        """Release resources, also after a failure."""


class NpySink(Sink):
    """One array (n, d). The header is written for zero rows first, and again once the number of rows is known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows = 0
        self._like: npt.NDArray[Any] | None = None

    def write(self, result: EmbeddingResult) -> None:
        if self._like is None:
            self._header(result.embeddings)
        self._file.write(result.embeddings.data)
        self._rows += len(result.embeddings)

    def finish(self, empty: Callable[[], EmbeddingResult]) -> None:
        like = empty().embeddings if self._like is None else self._like
        end = self._file.tell()
        self._file.seek(0)
        self._header(like)
        self._file.seek(max(end, self._file.tell()))

    def _header(self, like: npt.NDArray[Any]) -> None:
        self._like = like[:0]
        shape = (self._rows, like.shape[1])
        # numpy leaves room for a longer number of rows, so both headers have the same length.
        numpy_format: Any = np.lib.format  # untyped
        descr = numpy_format.dtype_to_descr(like.dtype)
        numpy_format.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": shape})


class JsonLinesSink(Sink):
    """One JSON object per line: index, num_tokens, embedding (floats with as many digits as make them exact)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._index = 0

    def write(self, result: EmbeddingResult) -> None:
        if result.sparse is not None or result.multi_vector is not None:
            self._write_outputs(result)
            return
        width = result.embeddings.shape[1]
        digits = {"float32": "%.9g", "float16": "%.5g"}.get(result.embeddings.dtype.name, "%d")
        line = '{"index": %d, "num_tokens": %d, "embedding": [' + ", ".join([digits] * width) + "]}\n"
        finite = bool(np.isfinite(result.embeddings).all())
        for row, num_tokens in zip(result.embeddings.tolist(), result.num_tokens.tolist(), strict=True):
            text = line % (self._index, num_tokens, *row)
            if not finite:
                text = text.replace("nan", "NaN").replace("inf", "Infinity")  # as Python's json writes them
            self._file.write(text.encode())
            self._index += 1
        self._file.flush()

    def _write_outputs(self, result: EmbeddingResult) -> None:
        for row, num_tokens in enumerate(result.num_tokens.tolist()):
            line: dict[str, Any] = {"index": self._index, "num_tokens": num_tokens}
            if result.embeddings.shape[1]:
                line["embedding"] = result.embeddings[row].tolist()
            if result.sparse is not None:
                line["sparse"] = _weights(result.sparse[row])
            if result.multi_vector is not None:
                line["multi_vector"] = result.multi_vector[row].tolist()
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._index += 1
        self._file.flush()


def _weights(sparse: SparseVector) -> dict[str, Any]:
    """Sparse weights for JSON: ids, weights with all the digits that they need, and the tokens if there are any."""
    weights = [float(f"{weight:.9g}") for weight in sparse.weights.tolist()]
    tokens = {} if sparse.tokens is None else {"tokens": list(sparse.tokens)}
    return {"ids": sparse.ids.tolist(), "weights": weights, **tokens}


class ParquetSink(Sink):
    """Columns num_tokens (int32) and embedding (a list of fixed size)."""

    def __init__(self, file: BinaryIO) -> None:
        self._arrow = load_arrow()
        self._file = file
        self._writer: Any = None
        self._waiting: list[EmbeddingResult] = []
        self._rows = 0

    def write(self, result: EmbeddingResult) -> None:
        self._waiting.append(result)
        self._rows += len(result.num_tokens)
        if self._rows >= ROWS_PER_GROUP:
            self._flush()

    def finish(self, empty: Callable[[], EmbeddingResult]) -> None:
        if self._writer is None and not self._waiting:
            self._waiting.append(empty())
        if self._waiting:
            self._flush()

    def close(self) -> None:
        # An open writer writes its footer when it is garbage-collected, to a file that is closed by then.
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        embeddings = np.concatenate([result.embeddings for result in self._waiting])
        num_tokens = np.concatenate([result.num_tokens for result in self._waiting])
        values = self._arrow.array(embeddings.reshape(-1))
        lists = self._arrow.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
        table = self._arrow.table({"num_tokens": num_tokens, "embedding": lists})
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        self._waiting, self._rows = [], 0


class TerminalSink(Sink):
    """One short line per text, for people."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._index = 0

    def write(self, result: EmbeddingResult) -> None:
        width, dtype = result.embeddings.shape[1], result.embeddings.dtype.name
        form = "{:d}" if result.embeddings.dtype.kind in "iu" else "{:+.4f}"
        for place, num_tokens in enumerate(result.num_tokens.tolist()):
            line = f"{self._index}  {num_tokens} token{'s' if num_tokens != 1 else ''}"
            if width:
                row = result.embeddings[place, :SHOWN].tolist()
                values = ", ".join(map(form.format, row)) + (", …" if width > SHOWN else "")
                line += f"  {dtype}[{width}] ({values})"
            if result.sparse is not None:
                line += f"  {_shown(result.sparse[place])}"
            if result.multi_vector is not None:
                rows, columns = result.multi_vector[place].shape
                line += f"  {rows} x {dtype}[{columns}]"
            self._file.write(f"{line}\n".encode())
            self._index += 1
        self._file.flush()


def _shown(sparse: SparseVector) -> str:
    """The heaviest tokens, for people; ids if there are no tokens."""
    names = sparse.ids.tolist() if sparse.tokens is None else sparse.tokens
    order = np.argsort(-sparse.weights, kind="stable")[:SHOWN].tolist()
    values = ", ".join(f"{printable(str(names[place]))}: {sparse.weights[place]:.4f}" for place in order)
    return f"{len(sparse.ids)} weights ({values}{', …' if len(sparse.ids) > SHOWN else ''})"


FILES: dict[str, Callable[[BinaryIO], Sink]] = {".npy": NpySink, ".jsonl": JsonLinesSink, ".parquet": ParquetSink}


@contextmanager
def open_sink(output: Path | None, stream: bool, *, force: bool = False) -> Iterator[Sink]:
    """The sink for an output file, by its ending, or for the terminal. The file appears if the block succeeds.

    force: replace an existing file.
    """
    if output is None:
        if sys.stdout is None:
            raise UsageError("standard output is closed")
        yield JsonLinesSink(sys.stdout.buffer) if stream else TerminalSink(sys.stdout.buffer)
        return
    if stream:
        raise UsageError("--stream writes to the terminal: leave out --output, or write a .jsonl file")
    sink = FILES.get(output.suffix.lower())
    if sink is None:
        raise UsageError(f"{os.fspath(output)}: the output must be .npy, .jsonl or .parquet")
    if output.is_file() and not force:
        raise UsageError(f"{os.fspath(output)} exists already: --force replaces it")
    with usage_errors():
        atomic = AtomicFile(output)
    with atomic as file, closing(sink(file)) as opened:
        yield opened


class AtomicFile:
    """Written under a temporary name in the same folder; at the end it takes its own name, and replaces an older file.

    An exception in the ``with`` block, an interrupt included, removes the temporary file.
    """

    def __init__(self, path: Path) -> None:
        # A link stays a link: its target is replaced.
        self._path = Path(os.path.realpath(path))
        self._name = str(path)  # the name that the user knows, for messages
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._name)
        if self._path.exists() and not self._path.is_file():
            # A device or a pipe would be lost, replaced by a file.
            raise OSError(errno.EINVAL, "Not a regular file", self._name)
        self._temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.file: BinaryIO = self._temporary.open("x+b")
        except OSError as error:
            error.filename = self._name
            raise

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self._temporary, self._path)
        except OSError as failed:
            if kind is not None and not issubclass(kind, OSError):
                return  # what ended the block, such as an interrupt, is reported instead
            raise OSError(failed.errno, failed.strerror, self._name) from failed
        finally:
            self._temporary.unlink(missing_ok=True)
