"""The reference: sentence-transformers' vectors and logits. It is independent: nothing of our engine is imported."""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.texts import KINDS

Rows = list[npt.NDArray[np.float32] | None]

_CLASSES = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi_vector": "MultiVectorEncoder"}
"""sentence-transformers' class, by the output that is compared."""


def prepare() -> None:
    """Import the libraries that every case needs."""
    # One thread is enough for tiny models. Several would wait for each other on a busy machine.
    os.environ.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    warnings.filterwarnings("ignore")
    import sentence_transformers  # noqa: F401
    from sentence_transformers.sentence_transformer import modules  # noqa: F401

    load_cases()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Write a case's folder, then embed the texts. job: "case", "folder" (to write), "vectors" (.npz to write).

    Returns {"refused": why} if sentence-transformers can't load the model or embeds no text at all.
    """
    case = load_cases()[job["case"]]
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    case.write(folder)
    if case.reference:
        folder = folder.with_name(f"{folder.name}_reference")
        folder.mkdir()
        case.reference(folder)
    try:
        if case.classifies:
            from tritonembed_perf.families.logits import logits_of

            rows, problem = logits_of(folder)
        else:
            rows, problem = _embed(_load(folder, case.trusted or case.reference_code, case.output), case.output)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    if all(row is None for listed in rows.values() for row in listed):
        return {"refused": f"no text can be embedded ({problem})"}
    write_rows(Path(job["vectors"]), rows)
    return {}


def write_rows(path: Path, rows: dict[str, Rows]) -> None:
    """Write vectors by input type: float32 [texts, dimensions], with NaN for a text without a vector."""
    arrays = {}
    for kind, listed in rows.items():
        width = max((len(row) for row in listed if row is not None), default=0)
        missing = np.full(width, np.nan, np.float32)
        # Texts have different numbers of tokens, and so of their vectors' numbers.
        arrays[kind] = np.stack([missing if row is None else np.pad(row, (0, width - len(row))) for row in listed])
    np.savez(path, **arrays)


def _flat(output: Any) -> npt.NDArray[np.float32]:
    """A sparse output as the weights of the whole vocabulary; the vectors of tokens one after the other."""
    if getattr(output, "is_sparse", False):
        output = output.to_dense()
    return np.asarray(output, np.float32).reshape(-1)


def _load(folder: Path, trusted: bool, output: str) -> Any:
    import sentence_transformers
    import torch

    return getattr(sentence_transformers, _CLASSES[output])(
        str(folder),
        device="cpu",
        trust_remote_code=trusted,
        local_files_only=True,
        # Without this, weights of 16 bits are computed in 16 bits.
        model_kwargs={"dtype": torch.float32},
    )


def _embed(model: Any, output: str) -> tuple[dict[str, Rows], str]:
    """Embed each text alone, so that nothing depends on padding. Returns the vectors and the last problem."""
    methods = {"plain": model.encode, "query": model.encode_query, "passage": partial(model.encode_document)}
    # sentence-transformers gives every model an empty prompt `document`, and prefers it to `passage` and `corpus`. A
    # request that asks for `passage` means the prompt of that name.
    name = next((name for name in ("document", "passage", "corpus") if model.prompts.get(name)), None)
    if name:
        methods["passage"] = partial(model.encode_document, prompt_name=name)
    rows: dict[str, Rows] = {}
    problem = ""
    for kind, texts in KINDS.items():
        rows[kind] = []
        for text in texts:
            try:
                # The engine normalises again after a request's `dimensions`, whose default is truncate_dim.
                if output != "dense":
                    rows[kind].append(_flat(methods[kind](text, show_progress_bar=False)))
                    continue
                again = model.truncate_dim is not None and type(model[-1]).__name__ == "Normalize"
                vector = np.asarray(
                    methods[kind](text, show_progress_bar=False, normalize_embeddings=again), np.float32
                )
                rows[kind].append(vector if vector.ndim == 1 else None)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                rows[kind].append(None)
    return rows, problem
