"""ModernBERT and EuroBERT: rotary positions and attention windows."""

from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import WIDTH
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import dense, write_model
from tritonembed_perf.families.writing import ModelParts, random_state

LENGTH = 96
"""Tokens of a text: more than an attention window holds."""

NOMIC_PROMPTS = {"query": "search_query: ", "document": "search_document: "}


def write(folder: Path, model: ModelParts, mode: str = "mean", **sentence: Any) -> None:
    """Like `write_model`, with texts longer than the attention windows."""
    write_model(folder, model, mode, **{"max_length": LENGTH, **sentence})


def modernbert(model_class: str = "ModernBertModel", **changes: Any) -> ModelParts:
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
    return ModelParts(config, random_state(model_class, config), tokenizer, settings)


THETAS: dict[str, Any] = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
"""Rotary thetas under the names of transformers 4."""


@case("ModernBERT")
def modernbert_gte(folder: Path) -> None:
    """gte-modernbert-base: CLS pooling."""
    write(folder, modernbert(**THETAS), "cls")


@case("ModernBERT")
def modernbert_nomic(folder: Path) -> None:
    """modernbert-embed-base: mean pooling, and prompts."""
    write(folder, modernbert(**THETAS), prompts=NOMIC_PROMPTS)


@case("ModernBERT")
def modernbert_oldcfg(folder: Path) -> None:
    """Thetas that differ from the defaults."""
    write(folder, modernbert(global_rope_theta=40000.0, local_rope_theta=5000.0))


@case("ModernBERT")
def modernbert_tf5(folder: Path) -> None:
    """Saved by transformers 5: `layer_types` and `rope_parameters`."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    thetas = {"full_attention": 160000.0, "sliding_attention": 10000.0}
    rope = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in thetas.items()}
    write(folder, modernbert(layer_types=kinds, rope_parameters=rope))


@case("ModernBERT")
def modernbert_biases(folder: Path) -> None:
    write(folder, modernbert(attention_bias=True, mlp_bias=True, norm_bias=True, **THETAS))


@case("ModernBERT")
def modernbert_maskedlm(folder: Path) -> None:
    """ModernBERT-base as the hub has it: weights under `model.`, and a head."""
    write(folder, modernbert("ModernBertForMaskedLM", **THETAS))


@case("ModernBERT")
def modernbert_dense(folder: Path) -> None:
    write_model(folder, modernbert(**THETAS), "mean", dense(WIDTH, 32), max_length=LENGTH)


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
    write(folder, ModelParts(config, random_state("EuroBertModel", config), tokenizer, settings))
