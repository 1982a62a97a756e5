"""config.json: the architectures that are served correctly, and the changes that others need in vLLM.

The facts are of vLLM 0.25.1 and 0.32.0 and transformers 5.19. Known faults are refused here by name; the reference
(`reference/`) finds unknown faults.
"""

from collections.abc import Mapping
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.encoders import ENCODERS, ENCODERS_OF_PAIRS
from tritonembed_engine.model.hub_code import NEW, as_gte, check_jina_bert, check_new, is_jina_bert
from tritonembed_engine.model.jina_v3 import check_jina_v3, is_jina_v3

_OTHER_INPUTS = ("vision_config", "audio_config", "image_size", "num_mel_bins", "conv_dim")
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")

AS_ROBERTA = ("camembert", "data2vec-text")
"""Model types that are RoBERTa under another name. Under that name, vLLM's fallback begins positions at 0."""

OFFSET_UNKNOWN = ("ibert", "longformer", "luke", "roberta-prelayernorm", "xlm-roberta-xl", "xmod")
"""Model types whose positions begin after padding's, although vLLM begins at 0."""

RELATIVE = ("relative_key", "relative_key_query")
"""Positions that transformers 4 added to attention's scores (Shaw et al., 2018), in BERT and all families like it."""

BIDIRECTIONAL = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra")
"""Model types that `is_decoder` turns into decoders; vLLM ignores it."""

DECODERS = (
    *("Falcon", "GPT2", "GPTNeoX", "Gemma", "Gemma2", "Gemma3", "Gemma3Text", "Glm", "Granite", "InternLM2", "Llama"),
    *("Mistral", "Mixtral", "Olmo", "Olmo2", "Phi", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "StableLm"),
)
"""Families of causal language models: their classes without a head are named like these, with `Model` behind."""

WITH_HEAD = {
    "bert": ("bert.", "BertModel"),
    "electra": ("electra.", "ElectraModel"),
    "roberta": ("roberta.", "RobertaModel"),
    "camembert": ("roberta.", "RobertaModel"),
    "data2vec-text": ("data2vec_text.", "RobertaModel"),
    "xlm-roberta": ("roberta.", "XLMRobertaModel"),
    "modernbert": ("model.", "ModernBertModel"),
    NEW: ("new.", "GteModel"),
}
"""For each model type: the prefix of the encoder's weights in a checkpoint with a head; the class without the head."""


def head_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """The prefix of the encoder's weights in a checkpoint with a head, and the class without it; empty if unknown."""
    name = str((config.get("architectures") or [""])[0])
    family = name.removesuffix(_CLASSIFIERS[0])
    if family != name and family in DECODERS:
        return "model.", f"{family}Model"
    return WITH_HEAD.get(str(config.get("model_type")), ("", ""))


def check_architecture(
    name: str, config: Mapping[str, Any], has_modules: bool, is_classifier: bool = False
) -> tuple[str, ...]:
    """The class names of config.json. Raises ModelError if it is no text embedder, or one that vLLM gets wrong.

    has_modules: whether the folder has sentence-transformers' modules.json; then a head does not matter. is_classifier:
    whether it is known as a reranker or a classifier.
    """
    architectures = tuple(config.get("architectures") or ())
    kind = config.get("model_type", "unknown")
    is_pair = config.get("is_encoder_decoder") and not (has_modules and kind in ENCODERS_OF_PAIRS)
    has_others = kind != "clip" and any(key in config for key in _OTHER_INPUTS)
    if is_pair or has_others or not (architectures or "model_type" in config):
        raise ModelError(f"{name} is not a text embedding model (model type {kind})")
    headless = has_modules or is_classifier
    if not headless and architectures and architectures[0].endswith(_CLASSIFIERS):
        raise ModelError(f"{name} is neither an embedding model nor a reranker ({architectures[0]})")
    if not headless and any(one.endswith("ForCausalLM") for one in architectures):
        raise ModelError(f"{name} is not an embedding model: it generates text, and has no sentence-transformers files")
    if any(one.startswith("HF_ColBERT") for one in architectures):
        raise ModelError(f"{name} is a multi-vector model (ColBERT), not an embedding model")
    if config.get("is_decoder") and kind in BIDIRECTIONAL:
        raise ModelError(f"{name}: is_decoder in config.json makes a {kind} causal, which can't be served")
    places = config.get("position_embedding_type")
    if places in RELATIVE:
        # The reference would be wrong in the same way, so the check at load would not find it.
        raise ModelError(f"{name}: {kind} with position_embedding_type {places} is not served: transformers 5 drops it")
    if kind in OFFSET_UNKNOWN and kind not in ENCODERS:
        raise ModelError(f"{name}: the positions of a {kind} model begin after padding's, but vLLM begins at 0")
    if is_jina_bert(config):
        check_jina_bert(name, config)
    if kind == NEW:
        check_new(name, config)
    if is_jina_v3(config):
        check_jina_v3(name, config)
    return architectures


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether it is NomicBERT with a mixture of experts (nomic-embed-text-v2-moe)."""
    return config.get("model_type") == "nomic_bert" and bool(config.get("moe_every_n_layers"))


def reason_against_cpu(config: Mapping[str, Any]) -> str | None:
    """Why vLLM can't run the model on a CPU, in 0.32.0; None if it can. config: config.json."""
    if has_experts(config):
        return "vLLM runs NomicBERT's mixture of experts by Triton kernels alone, which need a GPU"
    return None


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether attention is causal, as far as config.json shows. vLLM knows when it has loaded the model."""
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        return False
    name = str((config.get("architectures") or [""])[0])
    return name.endswith("ForCausalLM") or name.removesuffix("Model").removesuffix(_CLASSIFIERS[0]) in DECODERS


def config_for_vllm(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for vLLM: the same model in the words of the class that serves it."""
    changed = dict(config)
    kind = changed.get("model_type")
    if kind in AS_ROBERTA:
        changed["architectures"] = ["RobertaModel"]
    if kind in ("roberta", "xlm-roberta", *AS_ROBERTA):
        # The class reads it, and files of transformers 5 and of releases before 4 lack it.
        changed.setdefault("position_embedding_type", "absolute")
    if kind == NEW:
        changed = as_gte(config, "vllm")
    if changed.get("model_type") == "gte":
        changed.setdefault("position_embedding_type", "rope")
    if rope := _dropped_rope(config):
        changed["rope_parameters"] = rope
    return changed


def config_for_reference(loaded: Any, config: Mapping[str, Any]) -> None:
    """Restore what transformers' class drops of config.json. loaded: transformers' configuration."""
    if rope := _dropped_rope(config):
        loaded.rope_parameters = rope


def _dropped_rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """NomicBERT's rotary base: transformers' class, and with it vLLM, ignores the original's key and takes 1000."""
    if config.get("model_type") != "nomic_bert" or "rotary_emb_base" not in config or "rope_parameters" in config:
        return None
    return {"rope_theta": float(config["rotary_emb_base"]), "rope_type": "default"}
