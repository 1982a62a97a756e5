"""A model's reference: read from a given file or from the cache, or made.

It is made once for the contents of a model's folder, whatever the folder's name. A given file was written by
`Reference.save`, or has texts and their vectors from sentence-transformers:

    texts = ["…", …]
    numpy.savez("reference.npz", texts=texts, vectors=SentenceTransformer(model).encode(texts))

An array `input_types` may have "query", "passage" or "" per text, for `encode_query` and `encode_document`.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.adapters import AdapterFiles
from tritonembed_engine.model.contents import cache_folder, digests_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import weights_folder
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.cases import UNREADABLE, Case, Reference, load
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.child_python import run_module, turn
from tritonembed_engine.stub.process import announce
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
from tritonembed_protocol.types import INPUT_TYPES

logger = logging.getLogger(__name__)

VERSION = 6
"""The version of cases and oracle. If it changes, all references are made anew."""

MOST_SECONDS = 600.0
"""A reference is not made if the estimate of its time exceeds this."""

TOKENS = 3_000
TOKENS_OF_LARGE = 700
"""The approximate number of tokens in all cases of a model; see `making.LARGE`."""

PRODUCTS_PER_CORE = 20e9
"""Multiplications and additions per second in float32 on one core, a low estimate."""


def find_reference(settings: ModelSettings, files: ModelFiles, adapter: AdapterFiles | None = None) -> Reference:
    """The reference of a model: from the cache, else made by a process of its own, on the CPU.

    adapter: one to merge with its weights. Raises ModelError with the process's error, or if it would take too long.
    """
    complete = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    cache = cache_folder("references")
    if cache is None:
        logger.warning("the reference is not cached: no cache folder is writable (XDG_CACHE_HOME)")
        with tempfile.TemporaryDirectory() as folder:
            return _make(settings, files, complete, Path(folder) / "reference.npz", adapter)
    key = _digest(complete, files, settings, adapter)
    file = cache / f"{key}.npz"
    # Replicas start at the same time, and the first makes the reference.
    with turn(cache / f"{key}.lock", "waiting for the model's reference, which another replica computes"):
        if file.exists():
            with contextlib.suppress(ModelError):
                return load(file)
        return _make(settings, files, complete, file, adapter)


def read_reference(file: Path, files: ModelFiles) -> Reference:
    """The file as a reference of this model. Raises ModelError if it can't be read or does not fit."""
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    if files.classifier is not None:
        raise ModelError(f"{files.name}: a reference of vectors is none for a reranker or classifier (--reference)")
    try:
        with np.load(file, allow_pickle=False) as stored:
            if "ids" in stored.files:
                return load(file)
            texts = [str(text) for text in stored["texts"]]
            vectors = stored["vectors"].astype(np.float32)
            kinds = (
                [str(kind) for kind in stored["input_types"]] if "input_types" in stored.files else [""] * len(texts)
            )
    except FileNotFoundError:
        raise ModelError(f"there is no reference {file.name}") from None
    except UNREADABLE as error:
        raise ModelError(f"the reference {file.name} has no texts and vectors ({type(error).__name__})") from None
    if vectors.ndim != 2 or len(vectors) != len(texts) or not len(texts):
        raise ModelError(f"the reference {file.name} has {len(texts)} texts and vectors of shape {vectors.shape}")
    if len(kinds) != len(texts) or not {*kinds} <= {"", *INPUT_TYPES}:
        raise ModelError(f"the reference {file.name}: input_types are not one of query, passage or '' for each text")
    tokenizer, prompts = TextTokenizer(files), PromptLengths(files)
    cases = []
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        parameters = EmbedParameters(input_type=kind or None)
        answer = tokenizer.encode_requests([([text.encode()], parameters)])[0]
        if not isinstance(answer, list):
            raise ModelError(f"the reference {file.name}: text {number}: {answer}")
        cases.append(Case(f"text {number}", answer[0], prompts.skip(parameters), text, kind or None))
    return Reference(cases, vectors, file.name, {})


def _make(
    settings: ModelSettings, files: ModelFiles, complete: Path, file: Path, adapter: AdapterFiles | None
) -> Reference:
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
    announce("computing the model's reference")
    logger.warning("computing the model's reference, once per model: transformers in float32 on the CPU")
    started = time.monotonic()
    given = {
        "model": settings.model,
        "revision": settings.revision,
        "max_length": settings.max_model_len,
        "trust_remote_code": bool(settings.vllm.get("trust_remote_code")),
        "adapter": None if adapter is None else (adapter.name, settings.adapters[adapter.name]),
        "file": str(file),
    }
    run_module("tritonembed_engine.reference.making", given, f"{files.name}: its reference")
    reference = load(file)
    logger.warning("the reference has %d cases, computed in %.1f s", len(reference.cases), time.monotonic() - started)
    return reference


def _digest(complete: Path, files: ModelFiles, settings: ModelSettings, adapter: AdapterFiles | None) -> str:
    """A digest of all that the reference depends on."""
    listed = sorted(file for root in {complete, files.folder} for file in root.rglob("*") if file.is_file())
    names = [str(file.relative_to(files.folder)) if files.folder in file.parents else file.name for file in listed]
    contents = _sha([list(pair) for pair in zip(names, digests_of(listed), strict=True)])
    trust = bool(settings.vllm.get("trust_remote_code"))
    of_tokens = list(files.token_outputs.per_token)
    of_adapter = [] if adapter is None else ["adapter", adapter.digest]
    libraries = [version("transformers"), np.__version__]
    return _sha([VERSION, contents, *libraries, settings.max_model_len, trust, *of_tokens, *of_adapter])


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
