"""Small models with random weights, laid out like the models of the hub, for tests, the demo and benchmarks.

    python -m tritonembed_perf.models bert-6x384 OUT

Nothing here is trained: a vector says which tokens a text has, not what it means. The same arguments write the same
bytes.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tritonembed_perf import generated_tokenizers as generated
from tritonembed_perf.exact_length import exact_length_texts

__all__ = [
    "BERT_SHAPES",
    "WRITERS",
    "exact_length_texts",
    "write_bert",
    "write_modernbert",
    "write_preset",
    "write_qwen3",
    "write_roberta",
    "write_xlm_roberta",
]

BERT_TOKENIZER = Path(__file__).parent / "data" / "bert-base-uncased" / "tokenizer.json"
BERT_SHAPES: dict[str, dict[str, Any]] = {
    "bert-6x384": {"layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536},
    "bert-base": {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072},
    "bert-base-calm": {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "weight_std": 0.02},
}

WEIGHT_STD = 0.06
"""Standard deviation of the weights. The usual 0.02 makes the vectors of all texts nearly the same."""

SAME_IN_ALL_TEXTS = 0.1
"""What the embeddings of positions and token types are multiplied by: they would drown the words."""

SHARP_ATTENTION, STRONG_ATTENTION = 4.0, 2.0
"""For CLS pooling: queries and keys, values and outputs are multiplied by these, or [CLS] learns little of the text."""

_QWEN3_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class Sentence:
    """What sentence-transformers' files say beside the transformer itself."""

    pooling: str
    """sentence-transformers' own name: "cls", "mean", "lasttoken" (vLLM can't serve its others)."""

    normalize: bool
    max_length: int
    prompts: Mapping[str, str] | None = None
    default_prompt_name: str | None = None


def write_bert(
    folder: str | Path,
    *,
    layers: int = 6,
    hidden: int = 384,
    heads: int = 12,
    intermediate: int = 1536,
    vocab: int | None = None,
    max_length: int = 512,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    weight_std: float | None = None,
    seed: int = 0,
) -> Path:
    """BERT with the tokenizer of bert-base-uncased. vocab: rows of the embedding table, at least its 30,522.

    weight_std: None for WEIGHT_STD, which spreads the vectors but amplifies rounding: for fp8 take transformers' 0.02.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        **_shape(layers, hidden, heads, intermediate),
        vocab_size=vocab or 30_522,
        max_position_embeddings=max(512, max_length),
        initializer_range=weight_std or WEIGHT_STD,
    )
    sentence = Sentence(pooling, normalize, max_length, prompts, default_prompt_name)
    tokens = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "mask_token": "[MASK]", **tokens}
    return _write(Path(folder), BertModel, config, Tokenizer.from_file(str(BERT_TOKENIZER)), settings, sentence, seed)


def write_roberta(
    folder: str | Path,
    *,
    layers: int = 3,
    hidden: int = 96,
    heads: int = 4,
    intermediate: int = 192,
    vocab: int = 3000,
    max_length: int = 256,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """RoBERTa: byte-level BPE; its table of positions has two rows that no token uses."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**_roberta_shape(layers, hidden, heads, intermediate, vocab, max_length))
    tokenizer = generated.roberta_tokenizer(vocab, seed)
    settings = {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": False, **_roberta_tokens()}
    sentence = Sentence(pooling, normalize, max_length, prompts)
    return _write(Path(folder), RobertaModel, config, tokenizer, settings, sentence, seed)


def write_xlm_roberta(
    folder: str | Path,
    *,
    layers: int = 3,
    hidden: int = 96,
    heads: int = 4,
    intermediate: int = 192,
    vocab: int = 3000,
    max_length: int = 256,
    pooling: str = "cls",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """XLM-R: Unigram pieces over many scripts."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        # As the hub's models have it, and vLLM asks for it.
        position_embedding_type="absolute",
        **_roberta_shape(layers, hidden, heads, intermediate, vocab, max_length),
    )
    tokenizer = generated.xlm_roberta_tokenizer(vocab, seed)
    settings = {"tokenizer_class": "XLMRobertaTokenizerFast", **_roberta_tokens()}
    sentence = Sentence(pooling, normalize, max_length, prompts)
    return _write(Path(folder), XLMRobertaModel, config, tokenizer, settings, sentence, seed)


def write_modernbert(
    folder: str | Path,
    *,
    layers: int = 4,
    hidden: int = 96,
    heads: int = 4,
    intermediate: int = 192,
    vocab: int = 3000,
    max_length: int = 512,
    local_attention: int = 32,
    pooling: str = "cls",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """ModernBERT: every third layer sees the whole text, the others `local_attention` tokens around each."""
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = generated.modernbert_tokenizer(vocab, seed)
    ids = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "pad")}
    config = ModernBertConfig(
        **_shape(layers, hidden, heads, intermediate),
        # Its tokens for runs of spaces come after the trained pieces.
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=max_length,
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
    sentence = Sentence(pooling, normalize, max_length, prompts)
    return _write(Path(folder), ModernBertModel, config, tokenizer, settings, sentence, seed)


def write_qwen3(
    folder: str | Path,
    *,
    layers: int = 3,
    hidden: int = 128,
    heads: int = 4,
    intermediate: int = 256,
    vocab: int = 3000,
    max_length: int = 512,
    pooling: str = "lasttoken",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """A decoder in the manner of Qwen3-Embedding: the vector is that of the end token, which the tokenizer appends."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = generated.qwen3_tokenizer(vocab, seed)
    end = tokenizer.token_to_id("<|endoftext|>")
    config = Qwen3Config(
        **_shape(layers, hidden, heads, intermediate),
        vocab_size=vocab,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
        max_position_embeddings=max_length,
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
    prompts = prompts if prompts is not None else {"query": _QWEN3_QUERY, "document": ""}
    sentence = Sentence(pooling, normalize, max_length, prompts)
    return _write(Path(folder), Qwen3ForCausalLM, config, tokenizer, settings, sentence, seed)


WRITERS = {
    "roberta": write_roberta,
    "xlm-roberta": write_xlm_roberta,
    "modernbert": write_modernbert,
    "qwen3": write_qwen3,
}


def write_preset(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write "bert-6x384", "bert-base" or one of the small test models in WRITERS. Returns the folder."""
    if name in BERT_SHAPES:
        return write_bert(folder, **BERT_SHAPES[name], seed=seed)
    return WRITERS[name](folder, seed=seed)


def _shape(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


def _roberta_shape(layers: int, hidden: int, heads: int, intermediate: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        **_shape(layers, hidden, heads, intermediate),
        "vocab_size": vocab,
        "max_position_embeddings": length + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": WEIGHT_STD,
    }


def _roberta_tokens() -> dict[str, str]:
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return {f"{name}_token": token for name, token in names.items()}


def _write(
    folder: Path,
    model_class: Any,
    config: Any,
    tokenizer: Tokenizer,
    tokenizer_settings: Mapping[str, Any],
    sentence: Sentence,
    seed: int,
) -> Path:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    with torch.no_grad():
        _spread(model, sentence.pooling)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {**tokenizer_settings, "model_max_length": sentence.max_length})
    _write_sentence_files(folder, config.hidden_size, sentence)
    return folder


def _spread(model: Any, pooling: str) -> None:
    """Make the vectors of different texts differ clearly: cosines of 0.4 to 0.95 instead of 0.98 and more."""
    for name, weights in model.named_parameters():
        if "position_embeddings" in name or "token_type_embeddings" in name:
            weights.mul_(SAME_IN_ALL_TEXTS)
        if pooling != "cls":
            continue
        if name.endswith(("query.weight", "key.weight")):
            weights.mul_(SHARP_ATTENTION)
        elif name.endswith(("value.weight", "attention.output.dense.weight", "attn.Wo.weight")):
            weights.mul_(STRONG_ATTENTION)
        elif name.endswith("attn.Wqkv.weight"):
            queries_and_keys = weights.shape[0] * 2 // 3
            weights[:queries_and_keys].mul_(SHARP_ATTENTION)
            weights[queries_and_keys:].mul_(STRONG_ATTENTION)


def _write_sentence_files(folder: Path, hidden: int, sentence: Sentence) -> None:
    """The files that sentence-transformers adds to a model, in the form that most models of the hub still have."""
    names = ["Transformer", "Pooling", *(["Normalize"] if sentence.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    _write_json(folder / "modules.json", modules)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    pooling = {f"pooling_mode_{key}": mode == sentence.pooling for mode, key in modes.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **pooling})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": sentence.max_length, "do_lower_case": False})
    prompts = {"prompts": dict(sentence.prompts or {}), "default_prompt_name": sentence.default_prompt_name}
    _write_json(folder / "config_sentence_transformers.json", {**prompts, "similarity_fn_name": "cosine"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """The command: which model, and the folder to write."""
    parser = argparse.ArgumentParser(prog="python -m tritonembed_perf.models", description="Write a random model.")
    parser.add_argument("preset", choices=[*BERT_SHAPES, *WRITERS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_preset(arguments.preset, arguments.folder, arguments.seed)
    print(f"wrote {arguments.preset} with random weights to {arguments.folder}")


if __name__ == "__main__":
    main()
