"""JinaBERT v2 (jina-embeddings-v2): which of its configurations are served.

It is BERT without a table of positions: attention falls off with the distance (ALiBi, arXiv 2108.12409, in both
directions), and the feed-forward part is gated (GEGLU). Its class is the hub's code, which is not run.
"""

from collections.abc import Mapping
from typing import Any

from tritonembed_engine.errors import ModelError

JINA_BERT = "jina-bert"
"""`ModelFiles.model_type`; config.json says "bert"."""

_OTHER_CODE = "qk-post-norm"


def is_jina_bert(config: Mapping[str, Any]) -> bool:
    """Whether config.json is one of JinaBERT v2. jina-colbert-v1 names its class among the hub's code alone."""
    code = [str(one).rpartition(".")[2] for one in dict(config.get("auto_map") or {}).values()]
    return any(str(name).startswith("JinaBert") for name in [*(config.get("architectures") or ()), *code])


def check_jina_bert(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError, which names the key, for a variant that computes something else."""
    code = [config.get("_name_or_path"), *dict(config.get("auto_map") or {}).values()]
    if any(_OTHER_CODE in str(one) for one in code):
        # jina-embeddings-v2-base-code
        raise ModelError(
            f"{name}: JinaBERT with normalised queries and keys (jina-bert-v2-{_OTHER_CODE}) is not served"
        )
    for key, served in (("position_embedding_type", "alibi"), ("feed_forward_type", "geglu")):
        if config.get(key) != served:
            raise ModelError(
                f"{name}: JinaBERT with the {key} {str(config.get(key))[:40]!r} is not served, only {served!r}"
            )
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1 or width % heads:
        raise ModelError(f"{name}: num_attention_heads in config.json does not divide hidden_size")
