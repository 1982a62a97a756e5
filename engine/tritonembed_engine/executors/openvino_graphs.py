"""A model's graphs for OpenVINO: from the cache, else converted by a process of its own, which imports torch.

A second start imports neither torch nor transformers. It reads `states.xml` (from token ids to hidden states) and, if
there are steps after the pooling, `steps.xml`. Both are in float32, whatever precision they are compiled for. A model
in int8 has a second folder, with its own `states.xml` and the quality that the quantization reached.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.contents import cache_folder, digests_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.quantization import calibration_texts
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.child_python import run_module, turn
from tritonembed_engine.stub.process import announce

logger = logging.getLogger(__name__)

VERSION = 1
"""The version of the conversion. Another version converts all models anew."""

VERSION_OF_QUANTIZATION = 1

STATES, STEPS, QUALITY, MANIFEST = "states.xml", "steps.xml", "quality.json", "manifest.json"


class OpenVinoUnavailable(Exception):
    """The openvino executor can't serve the model; the message is the reason, in one line."""


@contextlib.contextmanager
def graphs_of(settings: ModelSettings, files: ModelFiles) -> Iterator[Path]:
    """A folder with the model's graphs, to be read within the context.

    Raises OpenVinoUnavailable if the model can't be converted.
    """
    with _kept(_key(settings, files), "converted", lambda folder: _convert(settings, files, folder)) as folder:
        yield folder


@contextlib.contextmanager
def quantized_of(
    settings: ModelSettings, files: ModelFiles, dtype: str, processor: str, graphs: Path
) -> Iterator[Path]:
    """As `graphs_of`, with products in int8. dtype: of the other products. processor: its capabilities. graphs: in
    float32.

    Raises OpenVinoUnavailable if int8 does not keep the requested quality.
    """
    made_of = [processor, dtype, settings.engine.quantization_quality, *calibration_texts(settings.engine.calibration)]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    key = f"{_key(settings, files)}-int8-{VERSION_OF_QUANTIZATION}-{digest}"
    with _kept(key, "quantized", lambda folder: _quantize(settings, files, dtype, graphs, folder)) as folder:
        yield folder


@contextlib.contextmanager
def _kept(key: str, what: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder in the cache if it is whole, else a folder that `make` fills. what: "converted" or "quantized"."""
    cache, reason = cache_folder("openvino"), "no cache folder is writable (XDG_CACHE_HOME)"
    place = None
    if cache is not None:
        try:
            place = _cached(cache, key, what, make)
        except OSError as error:
            reason = f"the cache folder can't be used ({type(error).__name__})"
    if place is not None:
        yield place
        return
    logger.warning("the %s model is not cached: %s", what, reason)
    with tempfile.TemporaryDirectory() as temporary:
        _make(Path(temporary), what, make)
        yield Path(temporary)


def _cached(cache: Path, key: str, what: str, make: Callable[[Path], None]) -> Path:
    """The folder in the cache, whole. Raises OSError if there is no way to write it."""
    place = cache / key
    with turn(cache / f"{key}.lock", f"waiting: another replica makes the {what} model"):
        if place.exists() and not _is_whole(place):
            logger.warning("the %s model in the cache is broken: it is %s again", what, what)
            _remove(place)
        if not place.exists():
            # A rename, so that the folder is whole or absent. Only this user can read it.
            part = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
            try:
                _make(part, what, make)
                part.rename(place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return place


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()


def _make(folder: Path, what: str, make: Callable[[Path], None]) -> None:
    started = time.monotonic()
    try:
        make(folder)
        _write_manifest(folder)
    except OSError as error:
        raise OpenVinoUnavailable(f"the {what} model can't be written ({type(error).__name__})") from None
    logger.warning("%s in %.1f s", what, time.monotonic() - started)


def _convert(settings: ModelSettings, files: ModelFiles, folder: Path) -> None:
    announce("converting the model for OpenVINO")
    logger.warning("converting the model for OpenVINO, once per model")
    given = {"settings": settings.model_dump(mode="json"), "folder": str(folder)}
    try:
        run_module("tritonembed_engine.executors.openvino_conversion", given, f"{files.name}: its conversion")
    except ModelError as error:
        raise OpenVinoUnavailable(f"the model does not convert: {error}") from None


def _quantize(settings: ModelSettings, files: ModelFiles, dtype: str, graphs: Path, folder: Path) -> None:
    announce("quantizing the model")
    logger.warning("quantizing the model to int8, once per model and calibration texts")
    given = {"settings": settings.model_dump(mode="json"), "dtype": dtype, "graphs": str(graphs), "folder": str(folder)}
    try:
        run_module("tritonembed_engine.openvino_quantization", given, f"{files.name}: its quantization")
    except ModelError as error:
        raise OpenVinoUnavailable(str(error)) from None


def _key(settings: ModelSettings, files: ModelFiles) -> str:
    """A digest of what determines the graphs: the model's contents, and the versions of the libraries that convert
    it."""
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
