"""Every accepted folder gives sentence-transformers' vectors. The others are refused by name."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from tests.unit.engine.random_folders import Draft, draft_of, write_bases

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.cases import Case
from tritonembed_engine.reference.oracle import Oracle
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_engine.vectors import finish, normalized

FOLDERS = 60
"""tests/slow runs 200."""
LEAST_ACCEPTED = 31
LOWEST_COSINE = 0.99999
TEXTS = [
    "The Railway company",
    "",
    "before [PAD] between <pad> after",
    "😀 naïve CAFÉ 中文",
    "  two  spaces and a text that is over the maximum " * 12,
]
FEW = TEXTS[:1] + TEXTS[-1:]

Vectors = npt.NDArray[np.float32]
Way = tuple[str, list[str], EmbedParameters]


def ways(files: ModelFiles) -> list[Way]:
    """The calls to compare: sentence-transformers' method, the texts, and our parameters."""
    names = [name for name in files.prompts if name not in ("query", "document")][-1:]
    return [
        ("encode", TEXTS, EmbedParameters()),
        ("encode_query", FEW, EmbedParameters(input_type="query")),
        ("encode_document", FEW, EmbedParameters(input_type="passage")),
        ("encode", FEW[:1], EmbedParameters(prompt="free: ")),
        *(("encode", FEW, EmbedParameters(prompt_name=name)) for name in names),
    ]


class Ours:
    """Files, tokenizer, prompts and the oracle, put together as a server does."""

    def __init__(self, folder: Path) -> None:
        self.files = read_model_files(str(folder))
        self._tokenizer = TextTokenizer(self.files)
        self._prompts = PromptLengths(self.files)
        self._oracle = Oracle(str(folder), None, self.files)

    def embed(self, texts: list[str], parameters: EmbedParameters) -> Vectors:
        answer = self._tokenizer.encode_requests([([text.encode() for text in texts], parameters)])[0]
        assert not isinstance(answer, InvalidArgument), answer
        skip = self._prompts.skip(parameters)
        vectors = self._oracle.embed([Case("", ids, skip) for ids in answer])
        normalize = self.files.normalize
        finished = finish(normalized(vectors) if normalize else vectors, parameters, normalize, self.files.truncate_dim)
        return finished.astype(np.float32)


def theirs_of(model: SentenceTransformer, way: Way, files: ModelFiles) -> Vectors:
    method, texts, parameters = way
    prompts = {"prompt": parameters.prompt, "prompt_name": parameters.prompt_name}
    if method == "encode_document" and "document" not in files.prompts:
        # Our input type falls back to passage and corpus. In sentence-transformers, every model has a document prompt.
        prompts["prompt_name"] = next((name for name in ("passage", "corpus") if files.prompts.get(name)), None)
    # One text per call: a text's vector does not depend on its batch.
    vectors: Vectors = getattr(model, method)(texts, batch_size=1, show_progress_bar=False, **prompts)
    return vectors


def difference(ours: Vectors, theirs: Vectors, keeps_length: bool) -> str | None:
    """The difference, in words, or None. keeps_length: whether the vectors' lengths have to agree too."""
    if ours.shape != theirs.shape:
        return f"shape {ours.shape}, not {theirs.shape}"
    finite = np.isfinite(theirs).all(1)
    if (np.isfinite(ours).all(1) != finite).any():
        return "other vectors are finite"
    a, b = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    norms, expected = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    if ((norms > 1e-6) != (expected > 1e-6)).any():
        return "other vectors are zero"
    kept = expected > 1e-6
    cosines = (a[kept] * b[kept]).sum(1) / norms[kept] / expected[kept]
    if cosines.min(initial=1.0) < LOWEST_COSINE:
        return f"cosines {np.round(cosines, 5).tolist()}"
    ratios = norms[kept] / expected[kept]
    if keeps_length and np.abs(ratios - 1).max(initial=0.0) > 1e-3:
        return f"lengths {np.round(ratios, 4).tolist()}"
    return None


def outcome(draft: Draft, folder: Path) -> tuple[str, str]:
    """accepted, refused or wrong, and the reason for the latter two."""
    try:
        ours = Ours(folder)
    except ModelError as error:
        message = str(error)
        wrong = "\n" in message or str(folder.parent) in message
        # Sound folders are served, except for classes of torch.nn that are no activations.
        wrong |= not draft.odd and "activation_function" not in message
        return ("wrong", message) if wrong else ("refused", message)
    try:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        expected = [theirs_of(model, way, ours.files) for way in ways(ours.files)]
    except Exception as error:
        return "wrong", f"sentence-transformers refuses it: {type(error).__name__}: {str(error)[:200]}"
    keeps_length = not (ours.files.normalize and ours.files.truncate_dim)
    for way, theirs in zip(ways(ours.files), expected, strict=True):
        problem = difference(ours.embed(way[1], way[2]), theirs, keeps_length)
        if problem:
            return "wrong", f"{way[0]} {way[2]}: {problem}"
    return "accepted", ""


def test_every_folder_gives_sentence_transformers_vectors_or_is_refused(tmp_path: Path) -> None:
    check_folders(tmp_path, FOLDERS, LEAST_ACCEPTED)


def check_folders(tmp_path: Path, folders: int, least_accepted: int) -> None:
    """None of the folders is wrong, and at least `least_accepted` are accepted."""
    torch.set_num_threads(1)
    bases = write_bases(tmp_path)
    counts: Counter[str] = Counter()
    wrong = []
    for number in range(folders):
        draft = draft_of(number)
        folder = draft.write(tmp_path / f"folder-{number}", bases)
        try:
            kind, why = outcome(draft, folder)
        except Exception as error:
            kind, why = "wrong", f"{type(error).__name__}: {error}"
        counts[kind] += 1
        if kind == "wrong":
            listed = {name: str(value)[:300] for name, value in vars(draft).items() if name not in ("rng", "weights")}
            wrong.append(f"{number}: {why}\n{json.dumps(listed, indent=1)}")
    assert not wrong, f"{counts}\n" + "\n".join(wrong)
    assert counts["accepted"] >= least_accepted, counts
