"""Encoders with rotary positions: ModernBERT, nomic, gte, EuroBERT, JinaBERT, jina v3."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import PROMPTS, WIDTH
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import dense, normalize, pooling, transformer, write_sentence_files
from tritonembed_perf.families.writing import Model, random_state

if TYPE_CHECKING:
    from tritonembed_perf.families.writing import State

LENGTH = 96
"""Tokens of a text: over the windows of the models that have windows."""

NOMIC_PROMPTS = {"query": "search_query: ", "document": "search_document: "}


def write(folder: Path, model: Model, mode: str = "mean", **sentence: Any) -> None:
    """A whole folder: the model, a pooling, normalised."""
    model.write(folder)
    sentence.setdefault("max_length", LENGTH)
    write_sentence_files(folder, [transformer(), pooling(WIDTH, mode), normalize()], **sentence)


def renamed(state: "State", names: Mapping[str, str]) -> "State":
    """Tensors under other names. names: regular expressions and what replaces them."""
    result = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        result[name] = tensor
    return result


def joined(state: "State", parts: tuple[str, ...], whole: str) -> "State":
    """Join tensors that differ by one part of their names, such as q_proj, k_proj and v_proj, row by row."""
    import torch

    result = dict(state)
    for name in state:
        if parts[0] in name:
            pieces = [result.pop(name.replace(parts[0], part)) for part in parts]
            result[name.replace(parts[0], whole)] = torch.cat(pieces)
    return result


def _modernbert(model_class: str = "ModernBertModel", **changes: Any) -> Model:
    tokenizer, settings = vocabularies.modernbert()
    ids = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "pad")}
    config = {
        "architectures": [model_class],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["cls"],
        "classifier_pooling": "mean",
        "cls_token_id": ids["cls"],
        "eos_token_id": ids["sep"],
        "global_attn_every_n_layers": 3,
        "hidden_activation": "gelu",
        "hidden_size": WIDTH,
        "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-5,
        "local_attention": 32,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-5,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "pad_token_id": ids["pad"],
        "position_embedding_type": "absolute",
        "sep_token_id": ids["sep"],
        "torch_dtype": "float32",
        "transformers_version": "4.48.0",
        "vocab_size": tokenizer.get_vocab_size(),
        **changes,
    }
    return Model(config, random_state(model_class, config), tokenizer, settings)


THETAS: dict[str, Any] = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
"""As transformers 4 wrote them."""


@case("ModernBERT")
def modernbert_gte(folder: Path) -> None:
    """gte-modernbert-base: CLS."""
    write(folder, _modernbert(**THETAS), "cls")


@case("ModernBERT")
def modernbert_nomic(folder: Path) -> None:
    """modernbert-embed-base: mean, with prompts."""
    write(folder, _modernbert(**THETAS), prompts=NOMIC_PROMPTS)


@case("ModernBERT")
def modernbert_oldcfg(folder: Path) -> None:
    """Thetas that differ from what a reader would assume."""
    write(folder, _modernbert(global_rope_theta=40000.0, local_rope_theta=5000.0))


@case("ModernBERT")
def modernbert_tf5(folder: Path) -> None:
    """Saved by transformers 5: `layer_types` and `rope_parameters`."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    thetas = {"full_attention": 160000.0, "sliding_attention": 10000.0}
    rope = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in thetas.items()}
    write(folder, _modernbert(layer_types=kinds, rope_parameters=rope))


@case("ModernBERT")
def modernbert_biases(folder: Path) -> None:
    write(folder, _modernbert(attention_bias=True, mlp_bias=True, norm_bias=True, **THETAS))


@case("ModernBERT")
def modernbert_maskedlm(folder: Path) -> None:
    """ModernBERT-base itself: under `model.`, with its head."""
    write(folder, _modernbert("ModernBertForMaskedLM", **THETAS))


@case("ModernBERT")
def modernbert_dense(folder: Path) -> None:
    _modernbert(**THETAS).write(folder)
    modules = [transformer(), pooling(WIDTH, "mean"), dense(WIDTH, 32), normalize()]
    write_sentence_files(folder, modules, max_length=LENGTH)


NOMIC_NAMES = {
    r"^layers": "encoder.layers",
    r"embeddings\.LayerNorm": "emb_ln",
    r"self_attn\.o_proj": "attn.out_proj",
    r"self_attn\.qkv": "attn.Wqkv",
    r"up_proj": "fc11",
    r"gate_proj": "fc12",
    r"down_proj": "fc2",
    r"post_attention_layernorm": "norm1",
    r"post_mlp_layernorm": "norm2",
}
QKV = ("q_proj", "k_proj", "v_proj")


FULL = {"width": 768, "layers": 12}
"""The shape of every nomic model of version 1, which transformers assumes: it does not read GPT-2's words."""

SMALL = {"width": WIDTH, "layers": 2}


def _nomic_native(theta: float = 1000.0, *, width: int, layers: int) -> Model:
    tokenizer, settings = vocabularies.bert(8192)
    config = {
        "architectures": ["NomicBertModel"],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 2048,
        "model_type": "nomic_bert",
        "num_attention_heads": max(2, width // 64),
        "num_hidden_layers": layers,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "vocab_size": vocabularies.BERT_VOCABULARY + 6,
        "dtype": "float32",
        "transformers_version": "5.9.0",
    }
    return Model(config, random_state("NomicBertModel", config), tokenizer, settings)


def _nomic_hub(theta: float = 1000.0, *, width: int, layers: int) -> Model:
    """config.json in GPT-2's words, as nomic-ai/nomic-embed-text-v1.5 has it."""
    model = _nomic_native(theta, width=width, layers=layers)
    model.state = renamed(joined(model.state, QKV, "qkv"), NOMIC_NAMES)
    code = "nomic-ai/nomic-bert-2048"
    model.config = {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "attn_pdrop": 0.0,
        "auto_map": {
            "AutoConfig": f"{code}--configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": f"{code}--modeling_hf_nomic_bert.NomicBertModel",
            "AutoModelForMaskedLM": f"{code}--modeling_hf_nomic_bert.NomicBertForPreTraining",
        },
        "bos_token_id": None,
        "causal": False,
        "dense_seq_output": True,
        "embd_pdrop": 0.0,
        "eos_token_id": None,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": width,
        "n_head": max(2, width // 64),
        "n_inner": 4 * width,
        "n_layer": layers,
        "n_positions": 8192,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "rotary_emb_base": int(theta),
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "use_xentropy": True,
        "vocab_size": vocabularies.BERT_VOCABULARY + 6,
    }
    return model


@case("nomic", reference=lambda folder: write(folder, _nomic_native(**FULL), prompts=NOMIC_PROMPTS))
def nomic_v15(folder: Path) -> None:
    """nomic-embed-text-v1.5, of full size."""
    write(folder, _nomic_hub(**FULL), prompts=NOMIC_PROMPTS)


@case("nomic", reference=lambda folder: write(folder, _nomic_native(10000.0, **FULL)))
def nomic_base10k(folder: Path) -> None:
    """`rotary_emb_base` 10000: the reference is a native model of that theta."""
    write(folder, _nomic_hub(10000.0, **FULL))


@case("nomic", reference=lambda folder: write(folder, _nomic_native(**SMALL)))
def nomic_2l(folder: Path) -> None:
    """Another shape, which only GPT-2's words in config.json tell."""
    write(folder, _nomic_hub(**SMALL))


@case("nomic", reference=lambda folder: write(folder, _nomic_native(**FULL), "cls"))
def arctic_m_long(folder: Path) -> None:
    write(folder, _nomic_hub(**FULL), "cls")


@case("nomic")
def nomic_native(folder: Path) -> None:
    """As transformers 5 saves it."""
    write(folder, _nomic_native(**SMALL), prompts=NOMIC_PROMPTS)


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


def _gte_native(rope: Mapping[str, Any], **changes: Any) -> Model:
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
    return Model(config, random_state("GteModel", config), tokenizer, settings)


def _gte_hub(code: str, model_class: str, rope: Mapping[str, Any], prefix: str = "", **changes: Any) -> Model:
    """As Alibaba-NLP's own code reads it. code: of auto_map, before the class's name."""
    model = _gte_native({"rope_theta": 1.0, "rope_type": "default"})
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


NTK = {"rope_scaling": {"factor": 8.0, "type": "ntk"}, "rope_theta": 20000}
NTK_NATIVE = {"rope_type": "linear", "factor": 8.0 ** (2 / 32), "rope_theta": 160000.0}
"""The same frequencies: base * factor, divided by factor ** (2 / head size)."""


def _write_gte_reference(folder: Path) -> None:
    write(folder, _gte_native(NTK_NATIVE), "cls")


@case("gte", reference=_write_gte_reference)
def gte_multilingual(folder: Path) -> None:
    """gte-multilingual-base: code that lies in another repository."""
    write(folder, _gte_hub(f"{NEW_CODE}--", "NewModel", NTK), "cls")


@case("gte", reference=_write_gte_reference)
def gte_multilingual_prefixed(folder: Path) -> None:
    """Under `new.`, as NewForTokenClassification saves it."""
    write(folder, _gte_hub(f"{NEW_CODE}--", "NewForTokenClassification", NTK, "new."), "cls")


@case(
    "gte",
    trusted=True,
    vllm={"hf_overrides": {"architectures": ["GteNewModel"]}},
    reference=_write_gte_reference,
)
def gte_multilingual_local(folder: Path) -> None:
    """The same with the code at hand."""
    write(folder, _gte_hub("", "NewModel", NTK), "cls")
    (folder / "configuration.py").write_text(STUB)


@case("gte", reference=lambda folder: write(folder, _gte_native({"rope_theta": 500000.0, "rope_type": "default"})))
def gte_en(folder: Path) -> None:
    """gte-base-en-v1.5, stella_en_400M: another theta, no scaling."""
    write(folder, _gte_hub(f"{NEW_CODE}--", "NewModel", {"rope_scaling": None, "rope_theta": 500000}))


@case("gte")
def gte_native(folder: Path) -> None:
    """As transformers 5 has it."""
    write(folder, _gte_native({"rope_theta": 160000.0, "rope_type": "default"}), "cls")


@case(
    "gte", reference=lambda folder: write(folder, _gte_native({"rope_theta": 160000.0, "rope_type": "default"}), "cls")
)
def arctic_m_v2(folder: Path) -> None:
    """arctic-embed-m-v2.0: the same weights, `gte`, code in the folder."""
    rope = {"rope_scaling": None, "rope_theta": 160000}
    model = _gte_hub("", "GteModel", rope, model_type="gte", torch_dtype="float32")
    model.config["auto_map"] = {
        "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
        "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
    }
    write(folder, model, "cls", prompts={"query": "query: "})


@case("EuroBERT")
def eurobert(folder: Path) -> None:
    tokenizer, settings = vocabularies.modernbert()
    ids = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "pad", "mask")}
    config = {
        "architectures": ["EuroBertModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_eurobert.EuroBertConfig",
            "AutoModel": "modeling_eurobert.EuroBertModel",
        },
        "bos_token_id": ids["cls"],
        "eos_token_id": ids["sep"],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "mask_token_id": ids["mask"],
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "eurobert",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": ids["pad"],
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 250000,
        "torch_dtype": "float32",
        "transformers_version": "4.40.0",
        "vocab_size": tokenizer.get_vocab_size(),
    }
    write(folder, Model(config, random_state("EuroBertModel", config), tokenizer, settings))


JINA_NAMES = {
    r"^layers": "encoder.layers",
    r"embeddings\.LayerNorm": "emb_ln",
    r"self_attn\.o_proj": "mixer.out_proj",
    r"self_attn\.qkv": "mixer.Wqkv",
    r"post_attention_layernorm": "norm1",
    r"post_mlp_layernorm": "norm2",
}


def _jina_v3_native() -> Model:
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
    return Model(config, random_state("JinaEmbeddingsV3Model", config), tokenizer, settings)


def _jina_v3_hub() -> Model:
    """jinaai/jina-embeddings-v3: every matrix with five adapters beside it."""
    import torch

    model = _jina_v3_native()
    state = renamed(joined(model.state, QKV, "qkv"), JINA_NAMES)
    generator = torch.Generator().manual_seed(3)
    result = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or "token_type" in name:
            result[f"roberta.{name}"] = tensor
            continue
        stem = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
        rows, columns = tensor.shape[::-1] if "word_embeddings" in name else tensor.shape
        result[f"{stem}.original"] = tensor
        result[f"{stem}.0.lora_A"] = torch.randn(5, 4, columns, generator=generator) * 0.05
        result[f"{stem}.0.lora_B"] = torch.randn(5, rows, 4, generator=generator) * 0.05
    model.state = result
    code = "jinaai/xlm-roberta-flash-implementation"
    tasks = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
    model.config = {
        **{key: value for key, value in model.config.items() if key not in ("rope_parameters", "dtype")},
        "architectures": ["XLMRobertaModel"],
        "auto_map": {
            "AutoConfig": f"{code}--configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": f"{code}--modeling_lora.XLMRobertaLoRA",
        },
        "emb_pooler": None,
        "load_trained_adapters": True,
        "lora_adaptations": tasks,
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


@case("jina")
def jina_v3(folder: Path) -> None:
    """jina-embeddings-v3: its own code, with adapters by task."""
    _jina_v3_hub().write(folder)
    first = transformer("custom_st.Transformer")
    write_sentence_files(folder, [first, pooling(WIDTH, "mean"), normalize()], prompts=PROMPTS)


@case("jina")
def jina_v3_native(folder: Path) -> None:
    """jina-embeddings-v3-hf: as transformers 5 has it, without adapters."""
    write(folder, _jina_v3_native())


@case("jina")
def jina_v2(folder: Path) -> None:
    """jina-embeddings-v2: ALiBi, its own code, which is not at hand."""
    from tritonembed_perf.families.bert import bert

    model = bert(architectures=["JinaBertForMaskedLM"], position_embedding_type="alibi", feed_forward_type="geglu")
    model.config["auto_map"] = {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
    }
    write(folder, model)
