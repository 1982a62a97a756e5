"""Decoders: Qwen, Llama, Mistral and Gemma, with causal and with bidirectional attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.modernbert import LENGTH
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import (
    Module,
    dense,
    normalize,
    pooling,
    transformer,
    write_model,
    write_sentence_files,
)
from tritonembed_perf.families.vocabularies import Vocabulary
from tritonembed_perf.families.writing import ModelParts, edit_json, random_state

WIDTH = 128
IDENTITY = "torch.nn.modules.linear.Identity"
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
QWEN_PROMPTS = {"query": INSTRUCT, "document": ""}
GEMMA_PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


def decoder(
    model_class: str, model_type: str, vocabulary: Callable[[], Vocabulary] = vocabularies.qwen, **changes: Any
) -> ModelParts:
    """A small decoder with the config.json keys of Llama and its relatives. changes: of those keys."""
    tokenizer, settings = vocabulary()
    end = tokenizer.token_to_id(settings["eos_token"])
    config = {
        "architectures": [model_class],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(settings["bos_token"]) if settings["bos_token"] else end,
        "eos_token_id": end,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 1024,
        "model_type": model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.token_to_id(settings["pad_token"]),
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.51.2",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
        **changes,
    }
    config = {key: value for key, value in config.items() if value is not ...}
    return ModelParts(config, random_state(model_class, config), tokenizer, settings)


def write(folder: Path, model: ModelParts, mode: str = "lasttoken", *after: Module, **sentence: Any) -> None:
    """Like `write_model`, with last-token pooling and texts longer than the attention windows."""
    write_model(folder, model, mode, *after, **{"max_length": LENGTH, **sentence})


def to_dtype(model: ModelParts, dtype: str) -> ModelParts:
    """Convert the weights. dtype: torch's name of a 16-bit type."""
    import torch

    model.state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state.items()}
    model.config["torch_dtype"] = dtype
    return model


def without_prefix(model: ModelParts) -> ModelParts:
    """Remove the prefix `model.` from the body's weights, as sentence-transformers saves them."""
    model.state = {name.removeprefix("model."): tensor for name, tensor in model.state.items()}
    return model


def _qwen3(model_class: str = "Qwen3ForCausalLM", **changes: Any) -> ModelParts:
    more = {"attention_bias": False, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}
    return decoder(model_class, "qwen3", **{**more, **changes})


@case("Qwen3")
def qwen3_emb(folder: Path) -> None:
    """bf16 weights, last-token pooling, the instruction as the query prompt."""
    write(folder, to_dtype(_qwen3(), "bfloat16"), prompts=QWEN_PROMPTS)


@case("Qwen3")
def qwen3_emb_basenames(folder: Path) -> None:
    """Qwen3-Embedding-0.6B: Qwen3ForCausalLM, but weights without the prefix `model.`."""
    write(folder, without_prefix(_qwen3()), prompts=QWEN_PROMPTS)


@case("Qwen3")
def qwen3_model(folder: Path) -> None:
    write(folder, _qwen3("Qwen3Model"), "lasttoken", dense(WIDTH, 48, IDENTITY), prompts=QWEN_PROMPTS)


@case("Qwen3")
def qwen3_mean(folder: Path) -> None:
    write(folder, _qwen3("Qwen3Model"), "mean")


@case("Qwen3")
def qwen3_wmean(folder: Path) -> None:
    """A decoder with SGPT's weighted mean."""
    write(folder, _qwen3("Qwen3Model"), "weightedmean")


@case("Qwen3")
def qwen3_noinclude(folder: Path) -> None:
    """Mean pooling that leaves out the prompt."""
    _qwen3("Qwen3Model").write(folder)
    modules = [transformer(), pooling(WIDTH, "mean", include_prompt=False), normalize()]
    write_sentence_files(folder, modules, prompts=QWEN_PROMPTS, max_length=LENGTH)


@case("Qwen3")
def qwen3_bidirectional(folder: Path) -> None:
    """Bidirectional attention: `is_causal` is false."""
    write(folder, _qwen3("Qwen3Model", is_causal=False), "mean")


@case("Qwen3")
def qwen3_left_padding(folder: Path) -> None:
    """The tokenizer pads on the left, as Qwen3-Embedding's does."""
    write(folder, _qwen3(), prompts=QWEN_PROMPTS)
    edit_json(folder / "tokenizer_config.json", padding_side="left")


def _real_kv() -> ModelParts:
    shape: dict[str, Any] = {
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "num_attention_heads": 8,
        "head_dim": 128,
    }
    return _qwen3(max_position_embeddings=32_768, **shape)


@case("Qwen3")
def qwen3_realkv(folder: Path) -> None:
    """A KV cache as large as that of Qwen3-Embedding-0.6B: 7 GiB for its maximum of 32,768 tokens."""
    write(folder, _real_kv(), prompts=QWEN_PROMPTS, max_length=32_768)


@case("Qwen3", vllm={"max_model_len": 2048})
def qwen3_realkv_short(folder: Path) -> None:
    write(folder, _real_kv(), prompts=QWEN_PROMPTS, max_length=32_768)


@case("Qwen3")
def qwen3_st6_chat(folder: Path) -> None:
    """A chat model that sentence-transformers 6 saved as an embedder. It applies the chat template to texts."""
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": output, "message": {**output, "format": "flat"}},
        "module_output_name": "token_embeddings",
    }
    write(folder, _qwen3(), settings=settings, max_length=None)
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    edit_json(folder / "tokenizer_config.json", chat_template=template)


@case("Qwen3")
def qwen3_nomodules(folder: Path) -> None:
    """A causal model without modules.json. sentence-transformers pools the last token if there is no chat template."""
    _qwen3().write(folder)


def _qwen2(model_class: str = "Qwen2Model", **changes: Any) -> ModelParts:
    more = {"max_window_layers": 21, "sliding_window": 131_072, "use_sliding_window": False, "head_dim": ...}
    return decoder(model_class, "qwen2", **{**more, **changes})


@case("Qwen2")
def gte_qwen2(folder: Path) -> None:
    """gte-Qwen2: code of its own; `is_causal` is false."""
    model = _qwen2("Qwen2ForCausalLM", is_causal=False, tie_word_embeddings=False)
    model.state.pop("lm_head.weight", None)
    model = without_prefix(model)
    model.config["auto_map"] = {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
    }
    write(folder, model, prompts={"query": INSTRUCT})


@case("Qwen2")
def stella_15b(folder: Path) -> None:
    """stella_en_1.5B_v5: like gte-Qwen2, with mean pooling and Dense."""
    model = _qwen2(is_causal=False)
    prompts = {"s2p_query": INSTRUCT, "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: "}
    write(folder, model, "mean", dense(WIDTH, 64, IDENTITY), prompts=prompts)


@case("Qwen2")
def qwen2_causal(folder: Path) -> None:
    write(folder, _qwen2())


@case("Qwen2")
def qwen2_causal_mean(folder: Path) -> None:
    write(folder, _qwen2(), "mean")


@case("Llama and Mistral")
def llama_causal_mean(folder: Path) -> None:
    write(folder, decoder("LlamaModel", "llama", vocabularies.llama, rope_theta=10000.0), "mean")


@case("Llama and Mistral")
def llama3_rope(folder: Path) -> None:
    """Llama 3's scaling of rotary positions."""
    scaling = {
        "factor": 4.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 256,
        "rope_type": "llama3",
    }
    write(folder, decoder("LlamaModel", "llama", vocabularies.llama, rope_theta=500000.0, rope_scaling=scaling))


@case("Llama and Mistral")
def e5_mistral(folder: Path) -> None:
    """fp16 weights, and a window that covers the whole text."""
    write(folder, to_dtype(_mistral(4096), "float16"), prompts={"web_search_query": INSTRUCT})


@case("Llama and Mistral")
def mistral_smallwindow(folder: Path) -> None:
    """An attention window of 24 tokens."""
    write(folder, _mistral(24))


@case("Llama and Mistral")
def mistral_noeos(folder: Path) -> None:
    """The tokenizer appends no end token."""
    write(folder, _mistral(None, end=False))


def _mistral(window: int | None, end: bool = True) -> ModelParts:
    settings = {"sliding_window": window, "rope_theta": 10000.0}
    return decoder("MistralModel", "mistral", lambda: vocabularies.llama(end=end), **settings)


BIDIRECTIONAL = """\
from transformers import LlamaConfig


class LlamaBidirectionalConfig(LlamaConfig):
    model_type = "llama_bidirec"

    def __init__(self, pooling="avg", temperature=1.0, **kwargs):
        self.pooling = pooling
        self.temperature = temperature
        super().__init__(**kwargs)
"""


def _llama_bidirectional(folder: Path) -> None:
    write(folder, decoder("LlamaModel", "llama", vocabularies.llama, is_causal=False), "mean")


def _write_nemotron(folder: Path) -> None:
    model = decoder("LlamaModel", "llama", vocabularies.llama)
    model.config.update(
        architectures=["LlamaBidirectionalModel"],
        auto_map={
            "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
            "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
        },
        model_type="llama_bidirec",
        pooling="avg",
        temperature=1.0,
    )
    write(folder, model, "mean")
    (folder / "llama_bidirectional_model.py").write_text(BIDIRECTIONAL)


@case("Llama and Mistral", reference=_llama_bidirectional)
def nemotron_embed_untrusted(folder: Path) -> None:
    """Code of the model's own, which may not be run."""
    _write_nemotron(folder)


@case("Llama and Mistral", trusted=True, reference=_llama_bidirectional)
def nemotron_embed(folder: Path) -> None:
    """llama-embed-nemotron: Llama with bidirectional attention."""
    _write_nemotron(folder)


@case("Llama and Mistral")
def nvembed(folder: Path) -> None:
    """NV-Embed: an architecture of its own, and a pooling that leaves out the prompt."""
    model = _mistral(None)
    model.config.update(
        architectures=["NVEmbedModel"],
        auto_map={"AutoConfig": "configuration_nvembed.NVEmbedConfig", "AutoModel": "modeling_nvembed.NVEmbedModel"},
        model_type="nvembed",
    )
    model.write(folder)
    modules = [transformer(), pooling(WIDTH, "mean", include_prompt=False), normalize()]
    write_sentence_files(folder, modules, prompts={"query": INSTRUCT})


def _gemma3(bidirectional: bool, **changes: Any) -> ModelParts:
    """Gemma 3 with a window of 32 tokens, except in every third layer."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    more = {
        "_sliding_window_pattern": 3,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "sliding_window": 32,
        "use_bidirectional_attention": bidirectional,
    }
    return decoder("Gemma3TextModel", "gemma3_text", vocabularies.gemma, **{**more, **changes})


def _write_embeddinggemma(folder: Path, model: ModelParts) -> None:
    after = [dense(WIDTH, 256, IDENTITY, bias=False), dense(256, WIDTH, IDENTITY, bias=False, seed=200)]
    write(folder, model, "mean", *after, prompts=GEMMA_PROMPTS)


@case("Gemma")
def embeddinggemma_hubcfg(folder: Path) -> None:
    """embeddinggemma-300m with the hub's config.json, and two Dense modules."""
    _write_embeddinggemma(folder, _gemma3(True))


@case("Gemma")
def embeddinggemma(folder: Path) -> None:
    """embeddinggemma-300m as transformers 5 saves it."""
    rope = {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    old = {"rope_theta": ..., "rope_local_base_freq": ..., "rope_scaling": ..., "torch_dtype": ..., "dtype": "float32"}
    _write_embeddinggemma(folder, _gemma3(True, rope_parameters=rope, **old))


@case("Gemma")
def gemma3_causal(folder: Path) -> None:
    write(folder, _gemma3(False))


@case("Gemma")
def bge_gemma2(folder: Path) -> None:
    """bge-multilingual-gemma2: fp16 weights, soft caps, a window of 48 tokens in every other layer."""
    more = {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "rope_theta": 10000.0,
        "sliding_window": 48,
    }
    model = decoder("Gemma2Model", "gemma2", vocabularies.gemma, **more)
    write(folder, to_dtype(model, "float16"))
