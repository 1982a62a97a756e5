"""Writes a model repository for a model and a machine, from the committed one."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tritonembed_manager import model_config
from tritonembed_manager.errors import StartError
from tritonembed_manager.model_json import model_json
from tritonembed_manager.settings import RenderSettings

MARKER = ".rendered-by-tritonembed"
CONFIG = "config.pbtxt"
MODEL_JSON = "model.json"
MODELS = ("tokenizer", "embedder", "embedding")

_SETTERS: dict[str, Callable[..., None]] = {
    "tokenizer": model_config.set_tokenizer,
    "embedder": model_config.set_embedder,
}


def template_folder() -> Path:
    """The committed model repository: beside this module in a wheel, at the root in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "model_repository", here.parents[1] / "model_repository"):
        if (folder / MODEL_JSON).is_file():
            return folder
    raise StartError("this installation of tritonembed has no model repository; install it again")


def render(out: Path, settings: RenderSettings, *, force: bool = False) -> None:
    """Write the repository `out`: complete or not at all.

    force: also where `out` holds something that was not rendered; what is not part of a repository stays there.
    Raises StartError when `out` is in use for something else or can't be written.
    """
    out = Path(out)
    ours = (out / MARKER).is_file()
    in_use = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if in_use and not ours and not (force and out.is_dir()):
        raise StartError(f"{out} was not written by render; choose another folder, or --force to write into it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            written = Path(scratch) / "new"
            _write(written, settings)
            if in_use and not ours:
                _replace_entries(written, out)
            else:
                _replace_folder(written, out, Path(scratch) / "old")
    except OSError as error:
        raise StartError(f"cannot write {out}: {error.strerror}") from None


def read_configs(repository: Path) -> dict[str, model_config.ModelConfig]:
    """The configurations of a repository's models, by name."""
    paths = sorted(Path(repository).glob(f"*/{CONFIG}"))
    return {path.parent.name: model_config.parse(path.read_text()) for path in paths}


def _write(folder: Path, settings: RenderSettings) -> None:
    template = template_folder()
    for name in MODELS:
        shutil.copytree(template / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        config = model_config.parse((template / name / CONFIG).read_text())
        if name in _SETTERS:
            _SETTERS[name](config, settings)
        (folder / name / CONFIG).write_text(model_config.to_text(config))
    content = model_json(json.loads((template / MODEL_JSON).read_text()), settings)
    (folder / MODEL_JSON).write_text(json.dumps(content, indent=2) + "\n")
    (folder / MARKER).write_text("Written by tritonembed-manager render, which replaces this folder as a whole.\n")


def _replace_folder(new: Path, out: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    new.rename(out)


def _replace_entries(new: Path, out: Path) -> None:
    for entry in new.iterdir():
        target = out / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        entry.replace(target)
