"""A model's reference from the cache, or made: once per contents of its folder, whatever the folder's name."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import weights_folder
from tritonembed_engine.reference.cases import Reference, load
from tritonembed_engine.settings import ModelSettings

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the cases and the oracle: another one makes all references anew."""

MOST_SECONDS = 600.0
"""Estimated; a reference that would take longer is not made unasked."""

TOKENS = 3_000
TOKENS_OF_LARGE = 700
"""About what the cases of a model have in all; see `making.LARGE`."""

PRODUCTS_PER_CORE = 20e9
"""Multiplications and additions a second in float32 on one core, from below."""

HASHED_AT_ONCE = 1 << 22


def find_reference(settings: ModelSettings, files: ModelFiles) -> Reference:
    """The reference of a model: from the cache, else made by a process of its own, on the CPU.

    Raises ModelError: what the process said, or that it would take too long.
    """
    complete = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    cache = cache_folder()
    if cache is None:
        logger.warning("the reference is not kept: no folder of a cache can be written (XDG_CACHE_HOME)")
        with tempfile.TemporaryDirectory() as folder:
            return _make(settings, files, complete, Path(folder) / "reference.npz")
    key = _digest(cache, complete, files, settings)
    file = cache / f"{key}.npz"
    # Replicas start side by side: the first makes it.
    with _lock(cache / f"{key}.lock"):
        if file.exists():
            with contextlib.suppress(ModelError):
                return load(file)
        return _make(settings, files, complete, file)


def cache_folder() -> Path | None:
    """Where references are kept; None where nothing can be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tritonembed" / "references"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _make(settings: ModelSettings, files: ModelFiles, complete: Path, file: Path) -> Reference:
    size = sum(one.stat().st_size for one in (*complete.glob("*.safetensors"), *complete.glob("*.bin")))
    parameters = size / 4
    seconds = (
        2 * parameters * (TOKENS_OF_LARGE if size > 1 << 30 else TOKENS) / PRODUCTS_PER_CORE / (os.cpu_count() or 1)
    )
    if seconds > MOST_SECONDS:
        raise ModelError(
            f"{files.name}: its reference would take about {seconds / 60:.0f} minutes on this machine's CPU; give the"
            " vectors of sentence-transformers (--reference FILE), or serve without (--no-reference)"
        )
    logger.warning("the model's reference is made, once: transformers in float32 on the CPU")
    started = time.monotonic()
    given = {
        "model": settings.model,
        "revision": settings.revision,
        "max_length": settings.max_model_len,
        "trust_remote_code": bool(settings.vllm.get("trust_remote_code")),
        "file": str(file),
    }
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # vLLM's settings of this process must not keep the child to one core.
    environment.pop("OMP_NUM_THREADS", None)
    ran = subprocess.run(
        [_python(), "-m", "tritonembed_engine.reference.making", json.dumps(given)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.startswith("tritonembed: ")]
        if lines:
            raise ModelError(lines[-1].removeprefix("tritonembed: "))
        logger.error("the reference's process failed:\n%s", ran.stderr[-2000:])
        raise ModelError(
            f"{files.name}: its reference could not be made (exit code {ran.returncode}); the log says why"
        )
    reference = load(file)
    logger.warning("the reference has %d cases, made in %.1f s", len(reference.cases), time.monotonic() - started)
    return reference


def _python() -> str:
    """The interpreter. Inside Triton's stub `sys.executable` is not one; its packages are those of the one on PATH."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return shutil.which("python3") or "python3"


def _digest(cache: Path, complete: Path, files: ModelFiles, settings: ModelSettings) -> str:
    """Of all that the reference depends on. Contents are read only where names, sizes and times are new."""
    import numpy
    import transformers

    listed = sorted(file for root in {complete, files.folder} for file in root.rglob("*") if file.is_file())
    names = [str(file.relative_to(files.folder)) if files.folder in file.parents else file.name for file in listed]
    stats = [[name, (at := file.stat()).st_size, at.st_mtime_ns] for name, file in zip(names, listed, strict=True)]
    known = cache / f"{_sha(stats)}.contents"
    if known.is_file():
        contents = known.read_text()
    else:
        contents = _sha([[name, _sha_of_file(file)] for name, file in zip(names, listed, strict=True)])
        # Another process may read it meanwhile.
        part = known.with_name(f".{known.name}.{os.getpid()}")
        part.write_text(contents)
        part.replace(known)
    trust = bool(settings.vllm.get("trust_remote_code"))
    return _sha([VERSION, contents, transformers.__version__, numpy.__version__, settings.max_model_len, trust])


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _sha_of_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
