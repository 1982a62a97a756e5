"""The encoder families of Hugging Face's transformers that its executor serves, by config.json's `model_type`.

The class is always transformers' own: code in a model's folder is not run.
"""

from collections.abc import Mapping
from typing import Any

from tritonembed_engine.model.hub_code import JINA_BERT, is_jina_bert
from tritonembed_engine.model.jina_v3 import is_jina_v3

ENCODERS = {
    "albert": "AlbertModel",
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "clip_text_model": "CLIPTextModelWithProjection",
    "data2vec-text": "Data2VecTextModel",
    "deberta": "DebertaModel",
    "deberta-v2": "DebertaV2Model",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "ernie": "ErnieModel",
    "megatron-bert": "MegatronBertModel",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
    "mt5": "MT5EncoderModel",
    "roberta": "RobertaModel",
    "roberta-prelayernorm": "RobertaPreLayerNormModel",
    "roformer": "RoFormerModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "xlm-roberta": "XLMRobertaModel",
    "xlm-roberta-xl": "XLMRobertaXLModel",
}
"""The class of each family. A batch's padding does not change its vectors."""

IN_OPENVINO = {
    **{kind: name for kind, name in ENCODERS.items() if kind not in ("clip_text_model", "modernbert")},
    "eurobert": "EuroBertModel",
    "gte": "GteModel",
    "new": "GteModel",
    "nomic_bert": "NomicBertModel",
}
"""The classes that the openvino executor converts. CLIP's text tower pools itself. If ModernBERT's padding is longer
than half a window, it attends to no token of the text, and OpenVINO computes numbers that are not finite."""

ENCODERS_OF_PAIRS = ("mt5", "t5", "umt5")
"""Families with an encoder and a decoder, of which only the encoder is loaded. Their positions are relative."""

_MISSING_IN_VLLM = (
    *(
        "albert",
        "clip_text_model",
        "deberta",
        "deberta-v2",
        "distilbert",
        JINA_BERT,
        "megatron-bert",
        "mpnet",
        "roformer",
    ),
    *ENCODERS_OF_PAIRS,
)
_POSITIONS_AFTER_PADDING = ("roberta-prelayernorm", "xlm-roberta-xl")


def reason_against_vllm(config: Mapping[str, Any]) -> str | None:
    """Why vLLM can't serve a family of ENCODERS, in 0.25.1 and 0.32.0; None if it can. config: config.json."""
    if is_jina_v3(config):
        return "vLLM needs the hub's code for it, and merges one of its tasks"
    kind = JINA_BERT if is_jina_bert(config) else config.get("model_type")
    if kind in _MISSING_IN_VLLM:
        return f"vLLM has no {kind} models"
    if kind in _POSITIONS_AFTER_PADDING:
        return f"the positions of a {kind} model begin after padding's, but vLLM begins at 0"
    if kind == "electra" and config.get("embedding_size", 128) != config.get("hidden_size", 256):
        return "vLLM leaves out ELECTRA's projection from embedding_size to hidden_size"
    return None


def has_relative_positions(config: Mapping[str, Any]) -> bool:
    """Whether the model has no table of positions, so that none limits the length of a text."""
    if config.get("model_type") in ENCODERS_OF_PAIRS:
        return True
    return config.get("model_type") in ("deberta", "deberta-v2") and not config.get("position_biased_input", True)
