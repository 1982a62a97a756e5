"""Random-weight models for the tests, each written once per session, when a test first uses it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import other_models

from tritonembed_perf import models

TOKEN_DIMENSIONS = 24
"""Of a token's vector, in a model with `write_heads`."""


def write_heads(folder: Path, hidden: int = 64) -> Path:
    """bge-m3's heads for sparse and multi-vector outputs, as random linear layers."""
    import torch

    generator = torch.Generator().manual_seed(5)
    for name, rows in (("sparse", 1), ("colbert", TOKEN_DIMENSIONS)):
        weight = torch.randn(rows, hidden, generator=generator) / hidden**0.5
        torch.save({"weight": weight, "bias": torch.randn(rows, generator=generator)}, folder / f"{name}_linear.pt")
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": lambda folder: write_heads(
        models.write_bert(
            folder,
            layers=2,
            hidden=64,
            heads=2,
            intermediate=128,
            max_length=64,
            prompts={"query": "find: ", "document": "text: "},
        )
    ),
    "bert-cls": lambda folder: models.write_bert(
        folder, layers=2, hidden=64, heads=2, intermediate=128, pooling="cls", normalize=False
    ),
    # The weights are as small as transformers initialises them: larger weights amplify fp8's rounding.
    "bert-calm": lambda folder: models.write_bert(folder, layers=3, hidden=256, heads=4, weight_std=0.02),
    "roberta": lambda folder: other_models.write_roberta(folder, hidden=128, max_length=64),
    "xlm-roberta": lambda folder: other_models.write_xlm_roberta(folder, hidden=128, max_length=64),
    "modernbert": lambda folder: other_models.write_modernbert(folder, hidden=128, max_length=64),
    "qwen3": lambda folder: other_models.write_qwen3(folder, hidden=128, max_length=64),
}


class ModelShelf:
    """`shelf("bert")` is the folder of that model; see WRITERS for the names."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str) -> Path:
        folder = self._root / name
        return folder if folder.exists() else WRITERS[name](folder)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> ModelShelf:
    """The session's small models."""
    return ModelShelf(tmp_path_factory.mktemp("models"))
