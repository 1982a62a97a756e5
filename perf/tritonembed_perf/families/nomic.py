"""nomic-embed-text and its relatives: BERT with rotary positions and a gated MLP; config.json has GPT-2's keys."""

import re
from pathlib import Path

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import WIDTH
from tritonembed_perf.families.modernbert import NOMIC_PROMPTS, write
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.writing import QKV, ModelParts, joined, random_state, renamed

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


FULL = {"width": 768, "layers": 12}
"""The shape of all nomic models of version 1. transformers assumes it and does not read GPT-2's keys."""

SMALL = {"width": WIDTH, "layers": 2}


def _nomic_native(theta: float = 1000.0, *, width: int, layers: int) -> ModelParts:
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
    return ModelParts(config, random_state("NomicBertModel", config), tokenizer, settings)


def _nomic_hub(theta: float = 1000.0, *, width: int, layers: int) -> ModelParts:
    """A model whose config.json has GPT-2's keys, as nomic-ai/nomic-embed-text-v1.5 does."""
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
    """nomic-embed-text-v1.5 in full size."""
    write(folder, _nomic_hub(**FULL), prompts=NOMIC_PROMPTS)


@case("nomic", reference=lambda folder: write(folder, _nomic_native(10000.0, **FULL)))
def nomic_base10k(folder: Path) -> None:
    """`rotary_emb_base` is 10000. The reference is a native model with that theta."""
    write(folder, _nomic_hub(10000.0, **FULL))


@case("nomic", reference=lambda folder: write(folder, _nomic_native(**SMALL)))
def nomic_2l(folder: Path) -> None:
    """A shape that only GPT-2's keys in config.json describe."""
    write(folder, _nomic_hub(**SMALL))


@case("nomic", reference=lambda folder: write(folder, _nomic_native(**FULL), "cls"))
def arctic_m_long(folder: Path) -> None:
    write(folder, _nomic_hub(**FULL), "cls")


@case("nomic")
def nomic_native(folder: Path) -> None:
    """As transformers 5 saves it."""
    write(folder, _nomic_native(**SMALL), prompts=NOMIC_PROMPTS)


@case("nomic", must_refuse=True)
def nomic_v2_moe(folder: Path) -> None:
    """nomic-embed-text-v2-moe: every second layer has experts. transformers would leave them out."""
    import torch

    model = _nomic_hub(10000.0, **FULL)
    width, inner = model.config["n_embd"], model.config["n_inner"]
    model.state = {
        name: tensor[: len(tensor) // 2] if ".mlp.fc1" in name else tensor
        for name, tensor in model.state.items()
        if int((re.findall(r"layers\.(\d+)\.mlp", name) or ["0"])[0]) % 2 == 0
    }
    for layer in range(1, FULL["layers"], 2):
        stem = f"encoder.layers.{layer}.mlp"
        model.state[f"{stem}.router.layer.weight"] = torch.zeros(2, width)
        model.state[f"{stem}.experts.bias"] = torch.zeros(width)
        for part in ("w1", "w2"):
            model.state[f"{stem}.experts.mlp.{part}"] = torch.zeros(2 * inner, width)
    model.config.update(
        activation_function="gelu", expert_choice_router=False, moe_every_n_layers=2, moe_top_k=1, num_experts=2
    )
    write(folder, model, prompts=NOMIC_PROMPTS)
