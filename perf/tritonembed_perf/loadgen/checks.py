"""Checks of answers: the shape and norm of each, and a sample compared with known vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.model.files import ModelFiles
from tritonembed_manager.tune.loadgen.load import LoadResult, Work
from tritonembed_perf.loadgen.protocols import Answer, WireProtocol, WrongAnswerError
from tritonembed_perf.loadgen.requests import PooledRequest
from tritonembed_perf.reports import without_paths

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}

NORM_TOLERANCE = 5e-3
"""The largest difference of a normalised vector's norm from 1; for 16-bit vectors it is about 1e-3."""

SENTENCES = 64
"""The number of sentences to compare; whole requests are taken until it is reached."""

MIN_COSINE, MIN_COSINE_16_BITS = 0.999, 0.99
"""Least cosines to the right vector, by the precision of the model's weights."""

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RightVectors:
    """The right vectors of some sentences of a request. rows: which sentences; vectors: theirs, norm 1."""

    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnswerCheck:
    """dimensions: of every vector. references: by the number of the request. tokens: of each, to be compared."""

    dimensions: int
    normalized: bool
    min_cosine: float
    references: Mapping[int, RightVectors]
    tokens: tuple[int, ...] | None = None

    def find_fault(self, number: int, answer: Answer) -> str:
        """What is wrong with the answer to request `number`; empty if nothing is."""
        vectors = answer.vectors
        if vectors.shape[1] != self.dimensions:
            return f"vectors of {vectors.shape[1]} dimensions instead of {self.dimensions}"
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        # Numbers that are not finite fail both comparisons.
        if self.normalized and not (np.abs(norms - 1) <= NORM_TOLERANCE).all():
            return f"a vector of norm {norms[np.argmax(np.abs(norms - 1))]:.4f} from a model that normalises"
        if not (np.isfinite(norms) & (norms > 0)).all():
            return "a vector that is zero or not finite"
        if self.tokens is not None and answer.tokens is not None and answer.tokens != self.tokens[number]:
            return f"the server saw {answer.tokens} tokens in a request of {self.tokens[number]}"
        reference = self.references.get(number)
        if reference is not None:
            rows = reference.rows
            cosines = np.einsum("ij,ij->i", vectors[rows], reference.vectors) / norms[rows]
            if not (cosines >= self.min_cosine).all():
                return f"a vector with cosine {np.min(cosines):.4f} to its reference, less than {self.min_cosine}"
        return ""


def min_cosine(dtype: str) -> float:
    """The least cosine of a right vector."""
    return MIN_COSINE if dtype == "float32" else MIN_COSINE_16_BITS


def make_references(requests: Sequence[PooledRequest], embed: Embed) -> dict[int, RightVectors]:
    """References by the number of the request. embed: the right vectors of some texts.

    Whole requests are taken, so that vectors in the wrong order are found too; of a very large one a part.
    """
    chosen: dict[int, tuple[str, ...]] = {}
    missing = SENTENCES
    for number, request in enumerate(requests):
        if missing <= 0:
            break
        chosen[number] = request.texts[:SENTENCES]
        missing -= len(chosen[number])
    vectors = unit_rows(embed([text for texts in chosen.values() for text in texts]))
    references = {}
    start = 0
    for number, texts in chosen.items():
        references[number] = RightVectors(np.arange(len(texts)), vectors[start : start + len(texts)])
        start += len(texts)
    return references


def embed_with_transformers(files: ModelFiles, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """float32 on the CPU, by the library alone: each text by itself, pooled and normalised as the model's files say."""
    from tritonembed_engine.reference.cases import Case
    from tritonembed_engine.reference.oracle import Oracle
    from tritonembed_engine.tokenizing.loading import own_tokenizer

    tokenizer = own_tokenizer(files)
    prompt = files.prompt_for(None)
    limit = files.lengths[None]
    ids = [tokenizer(prompt + text, truncation=True, max_length=limit).input_ids for text in texts]
    cases = [Case("text", np.asarray(one, dtype="<i4").tobytes()) for one in ids]
    vectors = Oracle(str(files.folder), None, files).embed(cases)
    return unit_rows(vectors) if files.normalize else vectors


def row_cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The cosine of each row with the same row of the other, in float64, because they are close to 1."""
    norms = np.linalg.norm(left.astype(np.float64), axis=1) * np.linalg.norm(right.astype(np.float64), axis=1)
    cosines: npt.NDArray[np.float64] = np.einsum("ij,ij->i", left, right, dtype=np.float64) / norms
    return cosines


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row scaled to norm 1."""
    scaled: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def make_work(protocol: WireProtocol, requests: Sequence[PooledRequest], check: AnswerCheck) -> Work:
    """Requests for the load generator, with every answer checked."""
    return Work(
        protocol.sender(),
        tuple(protocol.encode(request.texts) for request in requests),
        tuple(request.tokens for request in requests),
        partial(_fault, protocol.decode, len(requests[0].texts), check),
        frozenset(check.references),
    )


def figures(outcome: LoadResult) -> dict[str, Any]:
    """The report of a load: rates, latencies, and the numbers and reasons of failures and wrong answers."""
    part = outcome.samples
    faults = [*part.faults, *(f"{kind}: {message}" for kind, message in part.messages.items())]
    return {
        "requests_per_second": outcome.requests_per_second,
        "tokens_per_second": outcome.tokens_per_second,
        **{f"{name}_ms": outcome.latency_ms(of) if outcome.requests else 0.0 for name, of in PERCENTILES.items()},
        "errors": part.errors,
        "wrong": part.wrong,
        "faults": [without_paths(fault) for fault in dict.fromkeys(faults)],
        "client_cpu_seconds": outcome.client_cpu_seconds,
        "client_saturated": outcome.is_client_saturated,
    }


def _fault(decode: Callable[[bytes, int], Answer], sentences: int, check: AnswerCheck, number: int, raw: bytes) -> str:
    try:
        answer = decode(raw, sentences)
    except WrongAnswerError as error:
        return str(error)
    return check.find_fault(number, answer)
