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
from tritonembed_engine.model.classifier import PairTemplate
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.cases import LENGTHS, LONG_TEXT, LONGEST, TEXTS, Case, Reference
from tritonembed_engine.scores import ScoreParameters
from tritonembed_engine.token_ids import TYPE_BIT

LARGE = 1 << 30
"""Bytes of weights; a model of this size or more has fewer and shorter cases."""

FEW = ("empty", "sentence", "question", "special tokens", "emoji", "Chinese, Japanese, Korean")
FEW_PAIRS = ("sentence", "question", "emoji", "Chinese, Japanese, Korean")
FEW_LENGTHS = (2, 17, 65, 129)

IdsOf = Callable[[str, int], bytes]
"""Maps a text and the maximum of tokens to the ids of a Case."""


def make_reference(
    model: str,
    revision: str | None,
    max_length: int | None,
    trust_remote_code: bool,
    adapter: tuple[str, str] | None = None,
) -> Reference:
    """The reference of a model. Raises ModelError.

    max_length: as in `read_model_files`. adapter: name and path of an adapter to merge with its weights.
    """
    files = read_model_files(model, revision, max_length)
    merged = None if adapter is None else read_adapter(*adapter, files)
    files = files if merged is None else merged.files
    cases = list(_cases(files) if files.classifier is None else _pair_cases(files))
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
    # Expanded queries have tokens that the others don't attend to; the oracle can't compute these.
    for kind in ("passage",) if expands else ("query", "passage"):
        yield from _of_text(files, ids_of, f"{kind}: sentence", TEXTS["sentence"], kind)
    over = min(files.lengths[None], longest)
    if over == files.lengths[None]:
        yield from _of_text(files, ids_of, "over the maximum", LONG_TEXT, None)
    lengths = [n for n in (FEW_LENGTHS if large else LENGTHS) if n < files.max_length and n <= longest]
    if not large:
        lengths.append(min(files.max_length, LONGEST))
    for length in lengths:
        # Tokenizers cut the text at different places, but always to this many tokens.
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
    """Ids as sentence-transformers' StaticEmbedding makes them: without special tokens."""
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


def _pair_cases(files: ModelFiles) -> Iterator[Case]:
    """The cases of a reranker or classifier. A text alone is a case if the model has no template of pairs."""
    from tritonembed_engine.tokenizing.loading import own_tokenizer

    assert files.classifier is not None
    tokenizer = own_tokenizer(files, truncation_side="left" if files.truncate == "START" else "right")
    template, limit = files.classifier.template, files.lengths[None]
    large = sum(file.stat().st_size for file in files.transformer.glob("*.safetensors")) > LARGE

    def ids_of(query: str | None, text: str, most: int) -> bytes | None:
        try:
            if template is not None and query is not None:
                return _filled_ids(tokenizer, template, query, text, most)
            return _pair_ids(tokenizer, query, text, most, files.has_token_types)
        except Exception:
            # A Unigram vocabulary without <unk> refuses unknown characters, and a query can leave no room for a text.
            return None

    chosen = FEW_PAIRS if large else tuple(TEXTS)
    pairs = [(TEXTS["question"], name) for name in chosen]
    pairs += [(TEXTS[name], "sentence") for name in chosen if TEXTS[name].strip()]
    for query, name in pairs:
        if ids := ids_of(query, TEXTS[name], limit):
            yield Case(f"{name} for a query", ids, text=TEXTS[name], query=query)
    if not large and (ids := ids_of(TEXTS["question"], LONG_TEXT, limit)) and limit <= 512:
        yield Case("over the maximum", ids, text=LONG_TEXT, query=TEXTS["question"])
    for length in LENGTHS:
        if length <= limit and (length <= 128 or not large) and (ids := ids_of("hello", LONG_TEXT, length)):
            yield Case(f"{len(ids) // 4} tokens", ids)
    if template is None:
        for name in chosen:
            if ids := ids_of(None, TEXTS[name], limit):
                yield Case(f"{name} alone", ids, text=TEXTS[name])


def _pair_ids(tokenizer: Any, query: str | None, text: str, limit: int, has_types: bool) -> bytes:
    """A pair's ids, by the tokenizer's own rules."""
    # Lists, because transformers takes an empty string for no second text.
    given = ([text],) if query is None else ([query], [text])
    encoded = tokenizer(*given, truncation=True if query is None else "only_second", max_length=limit)
    ids = np.asarray(encoded["input_ids"][0], dtype="<i4")
    if len(ids) > limit:
        raise ValueError("the query is too long")
    if has_types and "token_type_ids" in encoded:
        ids = ids | np.asarray(encoded["token_type_ids"][0], dtype="<i4") << TYPE_BIT
    return ids.astype("<i4").tobytes()


def _filled_ids(tokenizer: Any, template: PairTemplate, query: str, text: str, limit: int) -> bytes:
    """A pair's ids as in the code on Qwen3-Reranker's card: one text, cut between the template's two ends."""
    before = tokenizer.encode(template.before, add_special_tokens=False)
    after = tokenizer.encode(template.after, add_special_tokens=False)
    whole = template.fill_query(query, None) + template.fill_text(text)
    room = limit - len(before) - len(after)
    if room < 1:
        raise ValueError("there is no room")
    ids = tokenizer(whole, truncation="longest_first", max_length=room)["input_ids"]
    return np.asarray([*before, *ids, *after], dtype="<i4").tobytes()


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
