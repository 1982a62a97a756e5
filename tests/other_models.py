"""Small models of other kinds than BERT, with random weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.families import vocabularies as generated
from tritonembed_perf.models import SMALL, WEIGHT_STD, ModelOptions, shape, write_model

if TYPE_CHECKING:
    from typing import Unpack

_QWEN3_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def write_roberta(folder: str | Path, **options: "Unpack[ModelOptions]") -> Path:
    """RoBERTa: byte-level BPE; its table of positions has two rows that no token uses."""
    from transformers import RobertaConfig, RobertaModel

    chosen: ModelOptions = {**SMALL, **options}
    tokenizer = generated.roberta_tokenizer(_vocab(chosen), chosen["seed"])
    settings = {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": False, **_roberta_tokens()}
    return write_model(Path(folder), RobertaModel, RobertaConfig(**_roberta_shape(chosen)), tokenizer, settings, chosen)


def write_xlm_roberta(folder: str | Path, **options: "Unpack[ModelOptions]") -> Path:
    """XLM-R: Unigram pieces over many scripts."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    chosen: ModelOptions = {**SMALL, "pooling": "cls", **options}
    # As the hub's models have it; vLLM requires it.
    config = XLMRobertaConfig(position_embedding_type="absolute", **_roberta_shape(chosen))
    tokenizer = generated.xlm_roberta_tokenizer(_vocab(chosen), chosen["seed"])
    settings = {"tokenizer_class": "XLMRobertaTokenizerFast", **_roberta_tokens()}
    return write_model(Path(folder), XLMRobertaModel, config, tokenizer, settings, chosen)


def write_modernbert(folder: str | Path, local_attention: int = 32, **options: "Unpack[ModelOptions]") -> Path:
    """ModernBERT: every third layer sees the whole text, the others `local_attention` tokens around each."""
    from transformers import ModernBertConfig, ModernBertModel

    chosen: ModelOptions = {**SMALL, "layers": 4, "max_length": 512, "pooling": "cls", **options}
    tokenizer = generated.modernbert_tokenizer(_vocab(chosen), chosen["seed"])
    ids = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "pad")}
    config = ModernBertConfig(
        **shape(chosen),
        # Its tokens for runs of spaces come after the trained pieces.
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=chosen["max_length"],
        local_attention=local_attention,
        cls_token_id=ids["cls"],
        sep_token_id=ids["sep"],
        pad_token_id=ids["pad"],
        bos_token_id=ids["cls"],
        eos_token_id=ids["sep"],
        initializer_range=WEIGHT_STD,
        initializer_cutoff_factor=3.0,
    )
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    return write_model(Path(folder), ModernBertModel, config, tokenizer, settings, chosen)


def write_qwen3(folder: str | Path, **options: "Unpack[ModelOptions]") -> Path:
    """A decoder like Qwen3-Embedding: the vector is that of the end token, which the tokenizer appends."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    chosen: ModelOptions = {
        **SMALL,
        "hidden": 128,
        "intermediate": 256,
        "max_length": 512,
        "pooling": "lasttoken",
        "prompts": {"query": _QWEN3_QUERY, "document": ""},
        **options,
    }
    tokenizer = generated.qwen3_tokenizer(_vocab(chosen), chosen["seed"])
    end = tokenizer.token_to_id("<|endoftext|>")
    config = Qwen3Config(
        **shape(chosen),
        vocab_size=chosen["vocab"],
        num_key_value_heads=chosen["heads"] // 2,
        head_dim=chosen["hidden"] // chosen["heads"],
        max_position_embeddings=chosen["max_length"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=True,
        initializer_range=WEIGHT_STD,
    )
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
    }
    return write_model(Path(folder), Qwen3ForCausalLM, config, tokenizer, settings, chosen)


def _vocab(chosen: ModelOptions) -> int:
    return chosen["vocab"] or 3000


def _roberta_shape(chosen: ModelOptions) -> dict[str, Any]:
    return {
        **shape(chosen),
        "vocab_size": _vocab(chosen),
        "max_position_embeddings": chosen["max_length"] + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": WEIGHT_STD,
    }


def _roberta_tokens() -> dict[str, str]:
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return {f"{name}_token": token for name, token in names.items()}
