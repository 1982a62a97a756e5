"""The cases of a reranker or classifier: pairs and texts, as transformers' own tokenizer makes ids of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tritonembed_engine.model.classifier import PairTemplate
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.reference.cases import LENGTHS, LONG_TEXT, TEXTS, Case
from tritonembed_engine.token_ids import TYPE_BIT
from tritonembed_engine.tokenizing.loading import own_tokenizer

LARGE = 1 << 30
"""Bytes of weights from which on there are fewer cases, as in `making`."""

_FEW = ("sentence", "question", "emoji", "Chinese, Japanese, Korean")


def pair_cases(files: ModelFiles) -> Iterator[Case]:
    """All cases. A text alone is a case if the model has no template of pairs."""
    assert files.classifier is not None
    tokenizer = own_tokenizer(files, truncation_side="left" if files.truncate == "START" else "right")
    template, limit = files.classifier.template, files.lengths[None]
    large = sum(file.stat().st_size for file in files.transformer.glob("*.safetensors")) > LARGE

    def ids_of(query: str | None, text: str, most: int) -> bytes | None:
        try:
            if template is not None and query is not None:
                return _filled(tokenizer, template, query, text, most)
            return _encoded(tokenizer, query, text, most, files.has_token_types)
        except Exception:
            # A Unigram vocabulary without <unk> refuses unknown characters, and a query can leave no room for a text.
            return None

    chosen = _FEW if large else tuple(TEXTS)
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


def _encoded(tokenizer: Any, query: str | None, text: str, limit: int, has_types: bool) -> bytes:
    """A pair's ids, by the tokenizer's own rules."""
    # As lists: else an empty text would be no second text.
    given = ([text],) if query is None else ([query], [text])
    encoded = tokenizer(*given, truncation=True if query is None else "only_second", max_length=limit)
    ids = np.asarray(encoded["input_ids"][0], dtype="<i4")
    if len(ids) > limit:
        raise ValueError("the query is too long")
    if has_types and "token_type_ids" in encoded:
        ids = ids | np.asarray(encoded["token_type_ids"][0], dtype="<i4") << TYPE_BIT
    return ids.astype("<i4").tobytes()


def _filled(tokenizer: Any, template: PairTemplate, query: str, text: str, limit: int) -> bytes:
    """A pair's ids as in the code on Qwen3-Reranker's card: one text, cut between the template's two ends."""
    before = tokenizer.encode(template.before, add_special_tokens=False)
    after = tokenizer.encode(template.after, add_special_tokens=False)
    whole = template.fill_query(query, None) + template.fill_text(text)
    room = limit - len(before) - len(after)
    if room < 1:
        raise ValueError("there is no room")
    ids = tokenizer(whole, truncation="longest_first", max_length=room)["input_ids"]
    return np.asarray([*before, *ids, *after], dtype="<i4").tobytes()
