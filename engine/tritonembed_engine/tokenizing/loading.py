"""The Rust tokenizer of a model, equal to transformers' `AutoTokenizer`."""

import logging
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, normalizers

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.tokenizing.file_pipeline import restore_file_pipeline

logger = logging.getLogger(__name__)

PROBES = (
    "",
    "Hello world",
    " two  spaces ",
    "naïve Ünïcödé ΑΒΓ 中文 हिन्दी",
    "1234.5 it's <s> [SEP] </s> <|endoftext|>\n\n",
)
"""Texts on which the class and the Rust tokenizer inside it must agree."""


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The model's tokenizer, without truncation and padding. Raises ModelError, in one line.

    tokenizer.json alone is not always the tokenizer that the model was trained with: the class and
    tokenizer_config.json have settings, too.
    """
    if files.is_static:
        return _load_static(files)
    tokenizer = own_tokenizer(files)
    side = "left" if files.truncate == "START" else "right"
    if getattr(tokenizer, "truncation_side", side) != side:
        # tokenizer.json can have a side too.
        raise ModelError(f"{files.name}: its tokenizer.json truncates on another side than its tokenizer_config.json")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(f"{files.name}: its tokenizer ({type(tokenizer).__name__}) has no fast form")
    backend.no_truncation()
    backend.no_padding()
    if not all(_agree(tokenizer, backend, text) for text in PROBES):
        raise ModelError(f"{files.name}: its tokenizer ({type(tokenizer).__name__}) gives other ids than its fast form")
    if files.lowercase:
        lowercase_first(backend)
    return backend


def register_markers(tokenizer: Any, markers: Sequence[str]) -> None:
    """Make tokens of ColBERT's markers, such as [unused0], which the tokenizer would split.

    tokenizer: of transformers. As sentence-transformers' MultiVectorEncoder does: a marker that is no token of the
    vocabulary stays a text.
    """
    from tokenizers import AddedToken

    known = {*tokenizer.get_vocab(), *tokenizer.added_tokens_encoder}
    found = []
    for marker in markers:
        # PyLate saves "[Q] " with its blank as one token.
        token = next((one for one in (marker, *marker.split(None, 1)[:1]) if one in known), None)
        if token is not None and tokenizer.tokenize(token) != [token]:
            found.append(AddedToken(token, normalized=False, special=True))
    if found:
        tokenizer.add_special_tokens({"additional_special_tokens": found})


def own_tokenizer(files: ModelFiles, **options: Any) -> Any:
    """transformers' tokenizer of a model, which runs tokenizer.json. options: more of `from_pretrained`.

    Raises ModelError if it can't be loaded.
    """
    from transformers import AutoTokenizer

    given = {**files.tokenizer_options, **options}
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.transformer, trust_remote_code=False, **given)
        built = _ids_of_probes(tokenizer)
        restore_file_pipeline(tokenizer, files.transformer)
    except Exception as error:
        raise ModelError(f"{files.name}: its tokenizer can't be loaded ({type(error).__name__})") from error
    if _ids_of_probes(tokenizer) != built:
        kind = type(tokenizer).__name__
        logger.warning("%s: its tokenizer.json, which counts, gives other ids than transformers' %s", files.name, kind)
    register_markers(tokenizer, files.markers)
    return tokenizer


def expansion_id(tokenizer: Any, token: str | None) -> int:
    """The id that expands queries. tokenizer: of transformers. token: None: [MASK], else the end token.

    Raises ModelError if there is no such token.
    """
    if token is None:
        found = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    else:
        found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ModelError("its tokenizer has no token for query_expansion")
    return int(found)


def _load_static(files: ModelFiles) -> Tokenizer:
    """tokenizer.json as it is, without special tokens."""
    try:
        tokenizer = Tokenizer.from_file(str(files.transformer / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{files.name}: its tokenizer can't be loaded ({type(error).__name__})") from None
    rows, largest = files.vocab_size - 1, max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= rows:
        raise ModelError(f"{files.name}: its tokenizer has ids up to {largest}, but its table has {rows} rows")
    tokenizer.post_processor = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_ids(files: ModelFiles) -> frozenset[int]:
    """The ids that transformers' class calls special."""
    return frozenset(own_tokenizer(files).all_special_ids)


def marks_pairs(files: ModelFiles) -> bool:
    """Whether transformers' class gives a model the types of its tokens, which mark the second text of a pair."""
    return "token_type_ids" in own_tokenizer(files).model_input_names


def _ids_of_probes(tokenizer: Any) -> list[list[int] | None]:
    """The ids of the Rust tokenizer inside a class; None if it refuses the text, as a tokenizer without <unk> may."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return [_ids(backend, text) for text in PROBES] if isinstance(backend, Tokenizer) else []


def _ids(backend: Tokenizer, text: str) -> list[int] | None:
    try:
        return list(backend.encode(text).ids)
    except Exception:
        return None


def _agree(tokenizer: Any, backend: Tokenizer, text: str) -> bool:
    try:
        expected = tokenizer(text).input_ids
    except Exception:
        # A Unigram vocabulary without <unk> refuses unknown characters; the Rust tokenizer refuses them too.
        return True
    return bool(expected == backend.encode(text).ids)


def lowercase_first(tokenizer: Tokenizer) -> None:
    """Lowercase before the normalizer, as sentence-transformers does under `do_lower_case`."""
    present = tokenizer.normalizer
    if present is None:
        tokenizer.normalizer = normalizers.Lowercase()
    elif b'"Lowercase"' not in present.__getstate__():
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), present])
