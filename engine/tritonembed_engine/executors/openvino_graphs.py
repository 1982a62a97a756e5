"""A model's graphs for OpenVINO: from the cache, else converted by a process of its own, which imports torch.

A second start imports neither torch nor transformers: it reads `states.xml` (token ids to hidden states) and, if there
are steps after the pooling, `steps.xml`, both in float32 whatever the precision that they are compiled for.
"""

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.contents import cache_folder, digests_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.child_python import run_module, turn
from tritonembed_engine.stub.process import announce

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the conversion; another version converts all models anew."""

STATES, STEPS, MANIFEST = "states.xml", "steps.xml", "manifest.json"


class OpenVinoUnavailable(Exception):
    """The openvino executor can't serve the model; the message is the reason, in one line."""


@contextlib.contextmanager
def graphs_of(settings: ModelSettings, files: ModelFiles) -> Iterator[Path]:
    """A folder with the model's graphs, to be read while the context is entered.

    Raises OpenVinoUnavailable if the model can't be converted.
    """
    cache = cache_folder("openvino")
    if cache is None:
        logger.warning("the converted model is not cached: no cache folder is writable (XDG_CACHE_HOME)")
        with tempfile.TemporaryDirectory() as folder:
            _convert(settings, files, Path(folder))
            yield Path(folder)
        return
    key = _key(settings, files)
    place = cache / key
    with turn(cache / f"{key}.lock", "waiting for the model's conversion by another replica"):
        if place.exists() and not _is_whole(place):
            logger.warning("the converted model in the cache is broken: it is converted again")
            shutil.rmtree(place)
        if not place.exists():
            # Whole or not at all, and only for this user.
            part = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
            try:
                _convert(settings, files, part)
                part.rename(place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    yield place


def _convert(settings: ModelSettings, files: ModelFiles, folder: Path) -> None:
    announce("converting the model for OpenVINO")
    logger.warning("converting the model for OpenVINO, once per model")
    started = time.monotonic()
    given = {"settings": settings.model_dump(mode="json"), "folder": str(folder)}
    try:
        run_module("tritonembed_engine.executors.openvino_conversion", given, f"{files.name}: its conversion")
        _write_manifest(folder)
    except ModelError as error:
        raise OpenVinoUnavailable(f"the model does not convert: {error}") from None
    except OSError as error:
        raise OpenVinoUnavailable(f"the converted model can't be written ({type(error).__name__})") from None
    logger.warning("converted in %.1f s", time.monotonic() - started)


def _key(settings: ModelSettings, files: ModelFiles) -> str:
    """Of all that the graphs depend on: the model's contents and the versions of what converts it."""
    parts = [str(VERSION), *(_version(name) for name in ("openvino", "torch", "transformers"))]
    return "-".join([embedding_space(settings, files, "float32").partition("-")[0], *parts])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _written(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != MANIFEST)


def _write_manifest(folder: Path) -> None:
    written = _written(folder)
    digests = dict(zip([file.name for file in written], digests_of(written), strict=True))
    (folder / MANIFEST).write_text(json.dumps(digests))


def _is_whole(folder: Path) -> bool:
    """Whether the files are those that were written."""
    try:
        expected = json.loads((folder / MANIFEST).read_text("utf-8"))
        written = _written(folder)
        return bool(expected == dict(zip([file.name for file in written], digests_of(written), strict=True)))
    except (OSError, ValueError):
        return False
