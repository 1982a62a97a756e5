"""Multi-vector models (ColBERT) in their three layouts: Stanford's code, PyLate, sentence-transformers 6.

Files, keys and defaults are those of sentence-transformers 6.2, whose MultiVectorEncoder reads all three.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.modules import Step, dense_step, modules_in_order
from tritonembed_engine.model.sentence_settings import SentenceSettings
from tritonembed_engine.model.token_outputs import Expansion, MultiVectorOutput

STANFORD = "HF_ColBERT"
"""The architecture that Stanford's code writes into config.json."""

_MASK = "MultiVectorMask"
_METADATA = "artifact.metadata"
NATIVE = "MultiVectorEncoder"
MODEL_TYPES = ("SentenceTransformer", NATIVE, "ColBERT")
"""PyLate names none, and then sentence-transformers' own counts."""
_PYLATE = (
    *("query_length", "document_length", "query_expansion", "do_query_expansion", "attend_to_expansion_tokens"),
    *("attend_to_mask_tokens", "query_prefix", "document_prefix", "skiplist_words"),
)
"""Keys of config_sentence_transformers.json that only PyLate writes."""

CANONICAL_LENGTH = 32
"""Tokens of a query in ColBERT, if no file says another number."""


@dataclass(frozen=True)
class LateInteraction:
    """A multi-vector model as its files describe it.

    prompts: markers and prompts by input type, in front of the model's own. markers: those that are one token each, so
    that the tokenizer must not split them. query_length, document_length: tokens; None if no file says it.
    """

    output: MultiVectorOutput
    prompts: Mapping[str, str]
    markers: tuple[str, ...]
    query_length: int | None
    document_length: int | None

    def settings(self, own: SentenceSettings, unknown: tuple[str, ...]) -> SentenceSettings:
        """sentence-transformers' settings with these. unknown: further keys without effect."""
        expansion = self.output.expansion
        query_length = expansion.length if expansion and expansion.fixed else self.query_length
        if expansion and not expansion.fixed and query_length:
            query_length = max(query_length, expansion.length)
        known = [f"config_sentence_transformers.json: {key}" for key in _PYLATE]
        return replace(
            own,
            prompts={**own.prompts, **self.prompts},
            query_length=query_length,
            document_length=self.document_length,
            unknown=tuple(key for key in own.unknown if key not in known) + unknown,
        )


def is_late_interaction(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a model's folder holds a multi-vector model. config: config.json. Raises ModelError."""
    if STANFORD in (config.get("architectures") or ()):
        return True
    if read_object(folder / "config_sentence_transformers.json").get("model_type") in MODEL_TYPES[1:]:
        return True
    listed = read_json(folder / "modules.json")
    names = [name for name, _ in modules_in_order(listed)] if listed is not None else []
    return _MASK in names or names[:2] == ["Transformer", "Dense"]


def read_late_interaction(
    folder: Path, config: Mapping[str, Any], own: Mapping[str, Any], hidden_size: int, unknown: list[str]
) -> LateInteraction:
    """config: config.json. own: the transformer's settings (sentence_bert_config.json), whose values win.

    unknown: gets keys without effect. Raises ModelError, which names what can't be served.
    """
    if STANFORD in (config.get("architectures") or ()):
        return _stanford(folder)
    given = read_object(folder / "config_sentence_transformers.json")
    prompts = {key: text or "" for key, text in (given.get("prompts") or {}).items()}
    markers = {}
    for key, kind in (("query_prefix", "query"), ("document_prefix", "document")):
        if key in given:
            markers[kind] = given[key] or ""
            prompts[kind] = markers[kind] + prompts.get(kind, "").removeprefix(markers[kind])
    lengths = {kind: given.get(f"{kind}_length") for kind in ("query", "document")}
    legacy = None
    if "query_expansion" in given:
        legacy = given["query_expansion"]
    elif any(key in given for key in _PYLATE) and given.get("do_query_expansion") is not False:
        attend = given.get("attend_to_expansion_tokens", given.get("attend_to_mask_tokens"))
        length = lengths.pop("query", None) or CANONICAL_LENGTH
        legacy = {"strategy": "fixed", "attend": bool(attend), "length": length}
    expansion = _expansion(own.get("query_expansion", legacy))
    # PyLate's files list neither the mask nor the normalisation, which its code always does.
    is_native = given.get("model_type") == NATIVE
    words = () if is_native else given.get("skiplist_words")
    if words is None and (markers or given.get("model_type") == "ColBERT"):
        words = string.punctuation
    output = _modules(folder, hidden_size, words or (), expansion, unknown, is_native)
    query_length, document_length = (own.get(f"{kind}_length") or lengths.get(kind) for kind in ("query", "document"))
    return LateInteraction(output, prompts, tuple(filter(None, markers.values())), query_length, document_length)


def _stanford(folder: Path) -> LateInteraction:
    """The projection is `linear.weight` among the transformer's weights; settings are in artifact.metadata."""
    given = read_object(folder / _METADATA)
    markers = {
        "query": (given.get("query_token_id") or "[unused0]") + " ",
        "document": (given.get("doc_token_id") or "[unused1]") + " ",
    }
    length = given.get("query_maxlen") or CANONICAL_LENGTH
    expansion = _expansion({"strategy": "fixed", "attend": bool(given.get("attend_to_mask_tokens")), "length": length})
    words = tuple(string.punctuation) if given.get("mask_punctuation", True) else ()
    output = MultiVectorOutput(in_checkpoint=True, skips_first=False, left_out=words, expansion=expansion)
    return LateInteraction(output, markers, tuple(markers.values()), None, given.get("doc_maxlen"))


def _modules(
    folder: Path,
    hidden_size: int,
    words: Sequence[str],
    expansion: Expansion | None,
    unknown: list[str],
    is_native: bool,
) -> MultiVectorOutput:
    """From the modules after the transformer. words: left out, if no MultiVectorMask says which.

    is_native: whether sentence-transformers 6 saved the modules, and so all of them.
    """
    modules = modules_in_order(read_json(folder / "modules.json"))
    if not modules or modules[0][0] != "Transformer":
        raise ModelError("the modules of a multi-vector model have to begin with Transformer")
    steps: list[Step] = []
    width, normalize, has_mask = hidden_size, not is_native, False
    kinds: tuple[str, ...] = ("document",)
    only: tuple[int, ...] = ()
    for name, path in modules[1:]:
        if name == "Dense":
            steps.append(dense_step(folder / path, width, unknown))
            width = steps[-1].out_width
        elif name == "Normalize":
            normalize = True
        elif name == _MASK and not has_mask:
            has_mask = True
            mask = read_object(folder / path / "config.json")
            words = mask.get("skiplist_words") or []
            given = mask.get("skiplist_tasks")
            kinds = ("document",) if given is None else (given,) if isinstance(given, str) else tuple(given)
            only = tuple(mask.get("keep_only_token_ids") or ())
        elif name != "Dropout":
            raise ModelError(f"a {name} module in a multi-vector model can't be served")
    if expansion is not None and is_native and not has_mask:
        raise ModelError("query_expansion without a MultiVectorMask module can't be served")
    return MultiVectorOutput(
        steps=tuple(steps),
        skips_first=False,
        normalize=normalize,
        left_out=tuple(map(str, words)),
        left_out_of=kinds,
        only=only,
        expansion=expansion,
    )


def _expansion(given: Any) -> Expansion | None:
    """Raises ModelError if it can't be followed."""
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("strategy") not in ("fixed", "min"):
        raise ModelError("query_expansion has no strategy fixed or min")
    length, token = given.get("length"), given.get("token")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelError("query_expansion has no length of at least 1")
    if token is not None and not isinstance(token, str):
        raise ModelError("query_expansion: token is not a text")
    return Expansion(length, bool(given.get("attend", False)), given["strategy"] == "fixed", token)
