"""Sizes of a model: those of config.json under any of their names, and the longest text of each input type."""

import functools
from collections.abc import Mapping
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.encoders import ENCODERS_OF_PAIRS, has_relative_positions
from tritonembed_engine.model.sentence_settings import SentenceSettings

OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose first position is `pad_token_id + 1`; no token uses the rows before it."""

NO_LIMIT = 10**9
"""transformers writes 1e30 for a tokenizer without a limit."""

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}


def text_lengths(
    name: str,
    tokenizer_config: Mapping[str, Any],
    settings: SentenceSettings,
    positions: int | None,
    longest: int | None,
) -> dict[str | None, int]:
    """Tokens of the longest text by input type. positions: of the model. longest: the limit of the settings."""
    stated = settings.max_seq_length or tokenizer_config.get("model_max_length")
    limits = [limit for limit in (positions, longest if longest and longest > 0 else None) if limit]
    own = min([int(stated)] if stated else [], default=NO_LIMIT)
    lengths: dict[str | None, int] = {
        None: own,
        "query": settings.query_length or own,
        "passage": settings.document_length or own,
    }
    capped = {kind: min([length, *limits]) for kind, length in lengths.items()}
    if max(capped.values()) >= NO_LIMIT:
        raise ModelError(f"{name} sets no maximum number of tokens for a text (max_seq_length)")
    return capped


def positions_of(config: dict[str, Any], settings: SentenceSettings) -> int | None:
    """The number of tokens for which the model has positions; None for no limit."""
    if has_relative_positions(config) and (settings.max_seq_length or config["model_type"] in ENCODERS_OF_PAIRS):
        # sentence-transformers then takes max_position_embeddings only for a model without max_seq_length; T5 has none.
        return None
    positions = _setting(config, "max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") in OFFSET_POSITIONS:
        positions -= padding_id_of(config) + 1
    return positions


def padding_id_of(config: dict[str, Any]) -> int:
    padding = _setting(config, "pad_token_id")
    return padding if isinstance(padding, int) else 0


def size_of(name: str, config: dict[str, Any], key: str) -> int:
    value = _setting(config, key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} is not a text embedding model: its config.json has no {key}")
    return value


def _setting(config: dict[str, Any], key: str) -> Any:
    """A value of config.json under any of its names, or transformers' default."""
    for name in _NAMES.get(key, (key,)):
        if name in config:
            return config[name]
    return getattr(_defaults(config.get("model_type", "")), key, None)


@functools.cache
def _defaults(model_type: str) -> Any:
    # Imported here: rarely needed (files written by hand or by very old releases), and it imports torch.
    try:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type)
    except (ImportError, ValueError):
        return None
