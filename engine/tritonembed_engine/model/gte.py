"""GTE as its first code has it (config.json's `model_type` "new", Alibaba-NLP/new-impl), in the words of transformers.

gte-multilingual-base, gte-base-en-v1.5 and stella_en_400M name code of the hub, which is not run. The weights are those
of transformers' own GTE under other names, which both vLLM and transformers read.
"""

from collections.abc import Mapping
from typing import Any, Literal

from tritonembed_engine.errors import ModelError

NEW = "new"
"""`model_type` of these models."""

_SERVED = {
    "hidden_act": ("gelu",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_clip1": (False,),
    "logn_attention_scale": (False,),
    "pack_qkv": (True,),
    "position_embedding_type": ("rope",),
}
"""Keys that change what the code computes, and their served values, which are the code's defaults."""

_CODE_ONLY = {*_SERVED, "auto_map", "rope_scaling", "rope_theta", "unpad_inputs", "use_memory_efficient_attention"} - {
    "hidden_act"
}


def check_new(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError, which names the key, if transformers' GTE computes something else."""
    for key, served in _SERVED.items():
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
    """config.json of the same model in transformers' words. library: which of them reads it.

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
    kept = {key: value for key, value in config.items() if key not in _CODE_ONLY}
    return {**kept, "model_type": "gte", "architectures": ["GteModel"], "rope_parameters": rope}
