"""Make a model's reference: choose the cases, tokenize them with transformers' tokenizer, compute the vectors.

Run as `python -m tritonembed_engine.reference.making` in a process of its own, whose memory and threads end with it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_engine.distance import Measure, measure_of
from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.adapters import read_adapter
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.cases import LENGTHS, LONG_TEXT, LONGEST, TEXTS, Case, Reference
from tritonembed_engine.reference.pair_cases import pair_cases
from tritonembed_engine.score_parameters import ScoreParameters

LARGE = 1 << 30
"""Bytes of weights from which on there are fewer and shorter cases."""

FEW = ("empty", "sentence", "question", "special tokens", "emoji", "Chinese, Japanese, Korean")
FEW_LENGTHS = (2, 17, 65, 129)

IdsOf = Callable[[str, int], bytes]
"""Maps a text and the most tokens to the ids of a Case."""


def make_reference(
    model: str,
    revision: str | None,
    max_length: int | None,
    trust_remote_code: bool,
    adapter: tuple[str, str] | None = None,
) -> Reference:
    """The reference of a model. Raises ModelError.

    max_length: as in `read_model_files`. adapter: name and path of one that is merged with its weights.
    """
    files = read_model_files(model, revision, max_length)
    merged = None if adapter is None else read_adapter(*adapter, files)
    files = files if merged is None else merged.files
    cases = list(_cases(files) if files.classifier is None else pair_cases(files))
    if not cases:
        raise ModelError(f"{files.name}: its tokenizer makes no ids of any text, so there is no reference")
    check_tokens(files, cases)
    if files.is_static:
        from tritonembed_engine.reference.static_oracle import StaticOracle

        return Reference(cases, StaticOracle(files).embed(cases), f"numpy {np.__version__}, float64", {})
    from tritonembed_engine.reference.oracle import Oracle

    oracle = Oracle(model, revision, files, trust_remote_code)
    if merged is not None:
        oracle.merge(merged)
    import transformers

    vectors = oracle.embed(cases)
    if not np.isfinite(vectors).all():
        names = ", ".join(case.name for case, row in zip(cases, vectors, strict=True) if not np.isfinite(row).all())
        raise ModelError(f"transformers' own vectors are not finite: {names[:120]}")
    source = f"transformers {transformers.__version__}, float32"
    of_scores = files.classifier is not None
    # Before the oracle computes in 16 bits.
    token_outputs = oracle.token_outputs(cases)
    rounding = _rounding(oracle, cases, vectors, measure_of(of_scores))
    return Reference(cases, vectors, source, rounding, oracle.unknown, of_scores, token_outputs)


def check_tokens(files: ModelFiles, cases: list[Case]) -> None:
    """Raise ModelError if our tokenizer's ids of a case's text differ from those of transformers."""
    ids_of = _own_pairs(files) if files.classifier is not None else _own_texts(files)
    for case in cases:
        if case.text is not None and ids_of(case) != [case.ids]:
            raise ModelError(f"{files.name}: the token ids of {case.name!r} are not those of its own tokenizer")


def _own_texts(files: ModelFiles) -> Callable[[Case], object]:
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    ours = TextTokenizer(files)

    def ids_of(case: Case) -> object:
        parameters = EmbedParameters(input_type=case.input_type)
        return ours.encode_requests([([(case.text or "").encode()], parameters)])[0]

    return ids_of


def _own_pairs(files: ModelFiles) -> Callable[[Case], object]:
    from tritonembed_engine.tokenizing.pairs import PairTokenizer

    ours = PairTokenizer(files)

    def ids_of(case: Case) -> object:
        queries = None if case.query is None else [case.query.encode()]
        return ours.encode_requests([([(case.text or "").encode()], queries, ScoreParameters())])[0]

    return ids_of


def _cases(files: ModelFiles) -> Iterator[Case]:
    ids_of = _static_ids(files) if files.is_static else _transformers_ids(files)
    large = sum(file.stat().st_size for file in files.transformer.glob("*.safetensors")) > LARGE
    longest = 128 if large else 512
    for name, text in TEXTS.items():
        if large and name not in FEW:
            continue
        yield from _of_text(files, ids_of, name, text, None)
    multi_vector = files.token_outputs.multi_vector
    expands = multi_vector is not None and multi_vector.expansion is not None
    # Queries with tokens that others don't see are no input of the oracle.
    for kind in ("passage",) if expands else ("query", "passage"):
        yield from _of_text(files, ids_of, f"{kind}: sentence", TEXTS["sentence"], kind)
    over = min(files.lengths[None], longest)
    if over == files.lengths[None]:
        yield from _of_text(files, ids_of, "over the maximum", LONG_TEXT, None)
    lengths = [n for n in (FEW_LENGTHS if large else LENGTHS) if n < files.max_length and n <= longest]
    if not large:
        lengths.append(min(files.max_length, LONGEST))
    for length in lengths:
        # Every tokenizer cuts the text at another place, but always to this many tokens.
        ids = ids_of(LONG_TEXT, length)
        if ids:
            yield Case(f"{len(ids) // 4} tokens", ids)


def _transformers_ids(files: ModelFiles) -> IdsOf:
    from tritonembed_engine.tokenizing.loading import lowercase_first, own_tokenizer

    tokenizer = own_tokenizer(files, truncation_side="left" if files.truncate == "START" else "right")
    if files.lowercase:
        lowercase_first(tokenizer.backend_tokenizer)

    def ids_of(text: str, limit: int) -> bytes:
        ids = tokenizer(text, truncation="longest_first", max_length=limit).input_ids
        return np.asarray(ids, dtype="<i4").tobytes()

    return ids_of


def _static_ids(files: ModelFiles) -> IdsOf:
    """Ids in the way of sentence-transformers' StaticEmbedding: without special tokens."""
    from tokenizers import Tokenizer

    assert files.empty_id is not None
    without_tokens = [files.empty_id]
    tokenizer = Tokenizer.from_file(str(files.transformer / "tokenizer.json"))
    tokenizer.no_padding()

    def ids_of(text: str, limit: int) -> bytes:
        tokenizer.enable_truncation(limit, direction="left" if files.truncate == "START" else "right")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids or without_tokens, dtype="<i4").tobytes()

    return ids_of


def _of_text(files: ModelFiles, ids_of: IdsOf, name: str, text: str, kind: str | None) -> Iterator[Case]:
    prompt = files.prompt_for(kind)
    limit = files.lengths[kind]
    try:
        ids = ids_of(prompt + text, limit)
        alone = ids_of(prompt, files.lengths[None]) if prompt and not files.include_prompt else b""
    except Exception:
        # A Unigram vocabulary without <unk> refuses unknown characters; so does our tokenizer.
        return
    skip = 0
    if alone:
        from tritonembed_engine.tokenizing.loading import special_ids

        special = special_ids(files)
        last = int(np.frombuffer(alone, dtype="<i4")[-1])
        skip = len(alone) // 4 - (last in special)
    # A tokenizer without special tokens has no ids for an empty text, which is refused.
    if ids:
        yield Case(name, ids, skip, text, kind)


def _rounding(oracle: Any, cases: list[Case], expected: Any, measure: Measure) -> dict[str, float]:
    """For each type, the largest distance between transformers' own 16-bit and float32 vectors of a few cases."""
    import torch

    few = sorted(range(len(cases)), key=lambda index: cases[index].tokens > 128)[:12]
    vectors = oracle.embed([cases[index] for index in few], torch.bfloat16)
    distances = measure.distances(vectors, expected[few], expected)
    return {"bfloat16": float(distances[np.isfinite(vectors).all(1)].max(initial=0.0))}


def main() -> None:
    """Arguments: one JSON object with those of `make_reference`, and `file`. Exit code 1 with one line for an error."""
    given = json.loads(sys.argv[1])
    file = Path(given.pop("file"))
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    try:
        make_reference(**given).save(file)
    except ModelError as error:
        print(f"tritonembed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
