"""config.json: which architectures vLLM serves rightly, and what it has to be told so that it does.

The facts are of vLLM 0.25.1 and 0.32.0 and transformers 5.19. What is refused here is refused by name; whatever else
vLLM gets wrong is found by the reference (`reference/`).
"""

from collections.abc import Mapping
from typing import Any

from tritonembed_engine.errors import ModelError

_OTHER_INPUTS = ("vision_config", "audio_config", "image_size", "num_mel_bins", "conv_dim")
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")

AS_ROBERTA = ("camembert", "data2vec-text")
"""Model types that are RoBERTa in all but name. Under their own, vLLM's fallback begins positions at 0."""

OFFSET_UNKNOWN = ("ibert", "longformer", "luke", "roberta-prelayernorm", "xlm-roberta-xl", "xmod")
"""Model types whose positions begin behind padding's, which vLLM does not know of them."""

BIDIRECTIONAL = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra")
"""Model types that become decoders by `is_decoder`, which vLLM does not follow."""

WITH_HEAD = {
    "bert": ("bert.", "BertModel"),
    "electra": ("electra.", "ElectraModel"),
    "roberta": ("roberta.", "RobertaModel"),
    "camembert": ("roberta.", "RobertaModel"),
    "data2vec-text": ("data2vec_text.", "RobertaModel"),
    "xlm-roberta": ("roberta.", "XLMRobertaModel"),
    "modernbert": ("model.", "ModernBertModel"),
}
"""By model type: what the encoder's weights are prefixed with in a checkpoint with a head, and the class without it."""


def check_architecture(name: str, config: Mapping[str, Any], has_modules: bool) -> tuple[str, ...]:
    """The class names of config.json. Raises ModelError for what is no text embedder, or one that vLLM gets wrong.

    has_modules: whether the folder is sentence-transformers' own, which says what becomes of a head.
    """
    architectures = tuple(config.get("architectures") or ())
    kind = config.get("model_type", "unknown")
    if (
        config.get("is_encoder_decoder")
        or any(key in config for key in _OTHER_INPUTS)
        or not (architectures or "model_type" in config)
    ):
        raise ModelError(f"{name} is not a text embedding model (model type {kind})")
    if not has_modules and architectures and architectures[0].endswith(_CLASSIFIERS):
        raise ModelError(f"{name} is not an embedding model but a classifier or reranker ({architectures[0]})")
    if not has_modules and any(one.endswith("ForCausalLM") for one in architectures):
        raise ModelError(f"{name} is not an embedding model: it generates text, and has no sentence-transformers files")
    if any(one.startswith("HF_ColBERT") for one in architectures):
        raise ModelError(f"{name} is a multi-vector model (ColBERT), not an embedding model")
    if config.get("is_decoder") and kind in BIDIRECTIONAL:
        raise ModelError(f"{name}: is_decoder in config.json makes a {kind} causal, which can't be served")
    if kind in OFFSET_UNKNOWN:
        raise ModelError(f"{name}: the positions of a {kind} model begin behind padding's, and vLLM's at 0")
    if kind == "electra" and config.get("embedding_size", 128) != config.get("hidden_size", 256):
        raise ModelError(f"{name}: vLLM leaves out ELECTRA's projection from embedding_size to hidden_size")
    if config.get("lora_adaptations"):
        raise ModelError(f"{name}: its tasks are LoRA adapters (lora_adaptations); adapters are not served")
    return architectures


def config_for_vllm(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as vLLM reads it rightly: the same model in the words of the class that serves it."""
    told = dict(config)
    kind = told.get("model_type")
    if kind in AS_ROBERTA:
        told["architectures"] = ["RobertaModel"]
    if kind in ("roberta", "xlm-roberta", *AS_ROBERTA):
        # Written by transformers 5 or before 4: the class reads it.
        told.setdefault("position_embedding_type", "absolute")
    if told.get("architectures") == ["NewModel"]:
        # The class of the hub's code; vLLM's own has another name.
        told["architectures"] = ["GteNewModel"]
    if kind == "gte":
        told.setdefault("position_embedding_type", "rope")
    if rope := _dropped_rope(config):
        told["rope_parameters"] = rope
    return told


def config_for_reference(loaded: Any, config: Mapping[str, Any]) -> None:
    """Mend what transformers' class drops of config.json. loaded: transformers' configuration of it."""
    if rope := _dropped_rope(config):
        loaded.rope_parameters = rope


def _dropped_rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """NomicBERT's rotary base: transformers' class, and with it vLLM, takes 1000 whatever the original's key says."""
    if config.get("model_type") != "nomic_bert" or "rotary_emb_base" not in config or "rope_parameters" in config:
        return None
    return {"rope_theta": float(config["rotary_emb_base"]), "rope_type": "default"}
