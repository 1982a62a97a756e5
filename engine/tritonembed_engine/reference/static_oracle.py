"""The reference of static embeddings: numpy in float64, one text at a time. It shares only the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.reference.cases import Case, Vectors


class StaticOracle:
    """A table of static embeddings, to compute the vectors of a reference."""

    unknown: Sequence[str] = ()

    def __init__(self, files: ModelFiles) -> None:
        """Read the table. Raises ModelError if it can't be read."""
        try:
            self._rows = _rows(files.transformer / "model.safetensors")
        except Exception as error:
            raise ModelError(f"{files.name}: its table can't be read ({type(error).__name__})") from None
        self._empty_id = files.empty_id
        self._steps = Steps(files.steps)

    def embed(self, cases: Sequence[Case]) -> Vectors:
        """float32 [cases, dimensions], not normalised at the end. A text without tokens is zeros before the steps."""
        means = np.stack([self._mean(np.frombuffer(case.ids, dtype="<i4")) for case in cases])
        with torch.inference_mode():
            vectors: Vectors = self._steps(torch.from_numpy(means.astype(np.float32))).numpy()
        return vectors

    def _mean(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        if ids.tolist() == [self._empty_id]:
            return np.zeros(self._rows(0).shape)
        return sum((self._rows(number) for number in ids.tolist()), np.zeros(())) / len(ids)


def _rows(file: Path) -> Any:
    """A function from an id to its row, float64 [width]: model2vec's tensors are looked up, not multiplied out."""
    from safetensors.torch import load_file

    # numpy has no bfloat16.
    tensors = {
        name: value.numpy() if value.dtype != torch.bfloat16 else value.double().numpy()
        for name, value in load_file(file).items()
    }
    if "embedding.weight" in tensors:
        return lambda number: tensors["embedding.weight"][number].astype(np.float64)
    mapping, weights = tensors.get("mapping"), tensors.get("weights")

    def row(number: int) -> Any:
        found = tensors["embeddings"][number if mapping is None else int(mapping[number])].astype(np.float64)
        return found if weights is None else found * np.float64(weights[number])

    return row
