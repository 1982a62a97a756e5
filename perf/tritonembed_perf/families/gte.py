"""gte, arctic-embed-m-v2.0 and jina: rotary positions, and code of their own, in the folder or elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import PROMPTS, WIDTH
from tritonembed_perf.families.modernbert import LENGTH, write
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import normalize, pooling, transformer, write_sentence_files
from tritonembed_perf.families.writing import QKV, ModelParts, joined, random_state, renamed

GTE_NAMES = {
    r"^layers": "encoder.layer",
    r"self_attn\.o_proj": "attention.o_proj",
    r"self_attn\.qkv": "attention.qkv_proj",
    r"mlp\.up_gate": "mlp.up_gate_proj",
    r"post_attention_layernorm": "attn_ln",
    r"post_mlp_layernorm": "mlp_ln",
}
NEW_CODE = "Alibaba-NLP/new-impl"
STUB = """\
from transformers import PretrainedConfig


class NewConfig(PretrainedConfig):
    model_type = "new"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
"""


def gte_native_model(rope: Mapping[str, Any], **changes: Any) -> ModelParts:
    tokenizer, settings = vocabularies.xlm_roberta(512)
    config = {
        "architectures": ["GteModel"],
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "gte",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "rope_parameters": dict(rope),
        "type_vocab_size": 1,
        "vocab_size": tokenizer.get_vocab_size(),
        "dtype": "float32",
        "transformers_version": "5.9.0",
        **changes,
    }
    return ModelParts(config, random_state("GteModel", config), tokenizer, settings)


def gte_hub_model(code: str, model_class: str, rope: Mapping[str, Any], prefix: str = "", **changes: Any) -> ModelParts:
    """config.json as Alibaba-NLP's code reads it. code: prefix of the class names in auto_map."""
    model = gte_native_model({"rope_theta": 1.0, "rope_type": "default"})
    state = joined(joined(model.state, QKV, "qkv"), ("up_proj", "gate_proj"), "up_gate")
    model.state = renamed(state, GTE_NAMES)
    model.prefix(prefix)
    model.config.update(
        architectures=[model_class],
        auto_map={"AutoConfig": f"{code}configuration.NewConfig", "AutoModel": f"{code}modeling.NewModel"},
        classifier_dropout=0.0,
        hidden_dropout_prob=0.1,
        layer_norm_type="layer_norm",
        logn_attention_clip1=False,
        logn_attention_scale=False,
        model_type="new",
        pack_qkv=True,
        position_embedding_type="rope",
        torch_dtype="float16",
        transformers_version="4.39.1",
        unpad_inputs=False,
        use_memory_efficient_attention=False,
        **rope,
    )
    for key in ("rope_parameters", "dtype"):
        del model.config[key]
    model.config.update(changes)
    return model


THETA = {"rope_theta": 500000.0, "rope_type": "default"}
NTK = {"rope_scaling": {"factor": 8.0, "type": "ntk"}, "rope_theta": 20000}
NTK_NATIVE = {"rope_type": "linear", "factor": 8.0 ** (2 / 32), "rope_theta": 160000.0}
"""The same frequencies for transformers: base * factor, divided by factor ** (2 / head size)."""


def _write_gte_reference(folder: Path) -> None:
    write(folder, gte_native_model(NTK_NATIVE), "cls")


@case("gte", reference=_write_gte_reference)
def gte_multilingual(folder: Path) -> None:
    """gte-multilingual-base: the code is in another repository."""
    write(folder, gte_hub_model(f"{NEW_CODE}--", "NewModel", NTK), "cls")


@case("gte", reference=_write_gte_reference)
def gte_multilingual_prefixed(folder: Path) -> None:
    """Weights under `new.`, as NewForTokenClassification saves them."""
    write(folder, gte_hub_model(f"{NEW_CODE}--", "NewForTokenClassification", NTK, "new."), "cls")


@case("gte", trusted=True, reference=_write_gte_reference)
def gte_multilingual_local(folder: Path) -> None:
    """gte-multilingual-base with its code in the folder."""
    write(folder, gte_hub_model("", "NewModel", NTK), "cls")
    (folder / "configuration.py").write_text(STUB)


@case("gte", reference=lambda folder: write(folder, gte_native_model(THETA)))
def gte_en(folder: Path) -> None:
    """stella_en_400M: another theta, no scaling."""
    write(folder, gte_hub_model(f"{NEW_CODE}--", "NewModel", {"rope_scaling": None, "rope_theta": 500000}))


def _write_without_token_type(folder: Path, model: ModelParts) -> None:
    model.config["type_vocab_size"] = 0
    del model.state["embeddings.token_type_embeddings.weight"]
    write(folder, model)


@case("gte", reference=lambda folder: _write_without_token_type(folder, gte_native_model(THETA)))
def gte_en_no_types(folder: Path) -> None:
    """gte-base-en-v1.5: no table of token types."""
    _write_without_token_type(
        folder, gte_hub_model(f"{NEW_CODE}--", "NewModel", {"rope_scaling": None, "rope_theta": 500000})
    )


@case("gte", must_refuse=True)
def gte_rms_norm(folder: Path) -> None:
    """A setting of the code that no released model has."""
    write(folder, gte_hub_model(f"{NEW_CODE}--", "NewModel", NTK, layer_norm_type="rms_norm"), "cls")


@case("gte")
def gte_native(folder: Path) -> None:
    """gte as transformers 5 saves it."""
    write(folder, gte_native_model({"rope_theta": 160000.0, "rope_type": "default"}), "cls")


def _arctic_m_v2_reference(folder: Path) -> None:
    model = gte_native_model({"rope_theta": 160000.0, "rope_type": "default"})
    write(folder, model, "cls", prompts={"query": "query: "})


@case("gte", reference=_arctic_m_v2_reference)
def arctic_m_v2(folder: Path) -> None:
    """arctic-embed-m-v2.0: gte's weights, model type `gte`, code in the folder."""
    rope = {"rope_scaling": None, "rope_theta": 160000}
    model = gte_hub_model("", "GteModel", rope, model_type="gte", torch_dtype="float32")
    model.config["auto_map"] = {
        "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
        "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
    }
    write(folder, model, "cls", prompts={"query": "query: "})


JINA_NAMES = {
    r"^layers": "encoder.layers",
    r"embeddings\.LayerNorm": "emb_ln",
    r"self_attn\.o_proj": "mixer.out_proj",
    r"self_attn\.qkv": "mixer.Wqkv",
    r"post_attention_layernorm": "norm1",
    r"post_mlp_layernorm": "norm2",
}


JINA_TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]


def jina_v3_native_model() -> ModelParts:
    """jina-embeddings-v3's base in transformers' words."""
    tokenizer, settings = vocabularies.xlm_roberta(512)
    config = {
        "architectures": ["JinaEmbeddingsV3Model"],
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 514,
        "model_type": "jina_embeddings_v3",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"},
        "type_vocab_size": 1,
        "vocab_size": tokenizer.get_vocab_size(),
        "dtype": "float32",
        "transformers_version": "5.9.0",
    }
    return ModelParts(config, random_state("JinaEmbeddingsV3Model", config), tokenizer, settings)


def _jina_v3_hub() -> ModelParts:
    """jinaai/jina-embeddings-v3: every matrix has five adapters."""
    import torch

    model = jina_v3_native_model()
    state = renamed(joined(model.state, QKV, "qkv"), JINA_NAMES)
    generator = torch.Generator().manual_seed(3)
    result = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or "token_type" in name:
            result[f"roberta.{name}"] = tensor
            continue
        stem = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
        rows, columns = tensor.shape
        # The first factor has the rows of the table of words. For other matrices the second factor has the rows.
        shapes = [(rows, 4), (4, columns)] if "word_embeddings" in name else [(4, columns), (rows, 4)]
        result[f"{stem}.original"] = tensor
        for factor, shape in zip("AB", shapes, strict=True):
            result[f"{stem}.0.lora_{factor}"] = torch.randn(len(JINA_TASKS), *shape, generator=generator) * 0.3
    model.state = result
    code = "jinaai/xlm-roberta-flash-implementation"
    model.config = {
        **{key: value for key, value in model.config.items() if key not in ("rope_parameters", "dtype")},
        "architectures": ["XLMRobertaModel"],
        "auto_map": {
            "AutoConfig": f"{code}--configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": f"{code}--modeling_lora.XLMRobertaLoRA",
        },
        "emb_pooler": None,
        "load_trained_adapters": True,
        "lora_adaptations": JINA_TASKS,
        "lora_alpha": 1,
        "lora_dropout_p": 0.0,
        "lora_rank": 4,
        "model_type": "xlm-roberta",
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.30.2",
        "truncate_dim": None,
        "use_flash_attn": True,
        "use_reg_tokens": False,
    }
    return model


def jina_colbert_v2(*, native: bool) -> ModelParts:
    """XLM-R with rotary positions: under transformers' names, or as the hub's code names it, without adapters."""
    model = jina_v3_native_model()
    if not native:
        model.state = renamed(joined(model.state, QKV, "qkv"), JINA_NAMES)
        hub = _jina_v3_hub().config
        model.config = {key: value for key, value in hub.items() if not key.startswith(("lora_", "load_trained"))}
    return model


@case("jina", reference=lambda folder: write(folder, jina_v3_native_model(), prompts=PROMPTS))
def jina_v3(folder: Path) -> None:
    """jina-embeddings-v3: code of its own, with one adapter per task. The reference is the base model."""
    _jina_v3_hub().write(folder)
    first = transformer("custom_st.Transformer")
    modules = [first, pooling(WIDTH, "mean"), normalize()]
    write_sentence_files(folder, modules, max_length=LENGTH, prompts=PROMPTS)


JINA_STUB = """\
from transformers import PretrainedConfig


class XLMRobertaFlashConfig(PretrainedConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
"""


@case("jina", trusted=True, reference=lambda folder: write(folder, jina_v3_native_model(), prompts=PROMPTS))
def jina_v3_local(folder: Path) -> None:
    """jina-embeddings-v3, code in the folder. The reference is the base model, as for a request without a task."""
    model = _jina_v3_hub()
    model.config["auto_map"] = {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"}
    write(folder, model, prompts=PROMPTS)
    (folder / "configuration_xlm_roberta.py").write_text(JINA_STUB)


@case("jina")
def jina_v3_native(folder: Path) -> None:
    """jina-embeddings-v3-hf: as transformers 5 saves it, without adapters."""
    write(folder, jina_v3_native_model())
