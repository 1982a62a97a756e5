"""Models whose class is code of the hub, which is not run: which of their configurations are served, and how.

GTE's first code (config.json's `model_type` "new", Alibaba-NLP/new-impl) is that of gte-multilingual-base,
gte-base-en-v1.5 and stella_en_400M. The weights are those of transformers' own GTE under other names, which both vLLM
and transformers read.

JinaBERT v2 (jina-embeddings-v2) is BERT without a table of positions: attention falls off with the distance (ALiBi,
arXiv 2108.12409, in both directions), and the feed-forward part is gated (GEGLU).
"""

from collections.abc import Mapping
from typing import Any, Literal

from tritonembed_engine.errors import ModelError

NEW = "new"
"""`model_type` of GTE's first code."""

_SERVED_GTE = {
    "hidden_act": ("gelu",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_clip1": (False,),
    "logn_attention_scale": (False,),
    "pack_qkv": (True,),
    "position_embedding_type": ("rope",),
}
"""Keys that change what GTE's code computes, and their served values, which are the code's defaults."""

_GTE_CODE_ONLY = {
    *_SERVED_GTE,
    "auto_map",
    "rope_scaling",
    "rope_theta",
    "unpad_inputs",
    "use_memory_efficient_attention",
} - {"hidden_act"}

JINA_BERT = "jina-bert"
"""`ModelFiles.model_type`; config.json says "bert"."""

_OTHER_JINA_CODE = "qk-post-norm"


def check_new(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError, which names the key, if transformers' GTE computes something else."""
    for key, served in _SERVED_GTE.items():
        if key in config and config[key] not in served:
            given = str(config[key])[:40]
            raise ModelError(f"{name}: a GTE model with the {key} {given!r} is not served, only with {served[0]!r}")
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    if not isinstance(scaling, dict) or scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise ModelError(
            f"{name}: a GTE model with the rope_scaling {str(scaling)[:60]} is not served, only with 'ntk'"
        )
    if not isinstance(scaling.get("factor"), int | float):
        raise ModelError(f"{name}: rope_scaling in config.json has no factor")


def as_gte(config: Mapping[str, Any], library: Literal["vllm", "transformers"]) -> dict[str, Any]:
    """config.json of a GTE model in transformers' words. library: which of them reads it.

    vLLM has the NTK scaling of the original code; transformers has not. The same frequencies are those of the base
    times the factor, divided by factor^(2/d), where d is the size of a head.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
    if scaling := config.get("rope_scaling"):
        factor, size = float(scaling["factor"]), config["hidden_size"] // config["num_attention_heads"]
        if library == "vllm":
            rope |= {"rope_type": "ntk", "factor": factor}
        else:
            rope = {
                "rope_type": "linear",
                "factor": factor ** (2 / size),
                "rope_theta": rope["rope_theta"] * factor,
            }
    kept = {key: value for key, value in config.items() if key not in _GTE_CODE_ONLY}
    return {**kept, "model_type": "gte", "architectures": ["GteModel"], "rope_parameters": rope}


def is_jina_bert(config: Mapping[str, Any]) -> bool:
    """Whether config.json is one of JinaBERT v2. jina-colbert-v1 names its class among the hub's code alone."""
    code = [str(one).rpartition(".")[2] for one in dict(config.get("auto_map") or {}).values()]
    return any(str(name).startswith("JinaBert") for name in [*(config.get("architectures") or ()), *code])


def check_jina_bert(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError, which names the key, for a variant that computes something else."""
    code = [config.get("_name_or_path"), *dict(config.get("auto_map") or {}).values()]
    if any(_OTHER_JINA_CODE in str(one) for one in code):
        # jina-embeddings-v2-base-code
        raise ModelError(
            f"{name}: JinaBERT with normalised queries and keys (jina-bert-v2-{_OTHER_JINA_CODE}) is not served"
        )
    for key, served in (("position_embedding_type", "alibi"), ("feed_forward_type", "geglu")):
        if config.get(key) != served:
            raise ModelError(
                f"{name}: JinaBERT with the {key} {str(config.get(key))[:40]!r} is not served, only {served!r}"
            )
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1 or width % heads:
        raise ModelError(f"{name}: num_attention_heads in config.json does not divide hidden_size")
