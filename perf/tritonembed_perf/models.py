"""Small models with random weights, laid out like the models of the hub, for tests, the demo and benchmarks.

    python -m tritonembed_perf.models bert-6x384 OUT

Nothing here is trained: a vector shows which tokens a text has, not what it means. The same arguments write the same
bytes.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from tokenizers import Tokenizer

from tritonembed_perf.reports import cache_folder

if TYPE_CHECKING:
    from typing import Unpack

BERT_TOKENIZER = Path(__file__).parent / "data" / "bert-base-uncased" / "tokenizer.json"
BERT_SHAPES: dict[str, dict[str, Any]] = {
    "bert-6x384": {"layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536},
    "bert-12x384-calm": {"layers": 12, "hidden": 384, "heads": 12, "intermediate": 1536, "weight_std": 0.02},
    "bert-base": {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072},
    "bert-base-calm": {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "weight_std": 0.02},
}

ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "xlm-roberta-large": (
        "XLMRoberta",
        {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096},
        {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "modernbert-base": (
        "ModernBert",
        {"layers": 22, "hidden": 768, "heads": 12, "intermediate": 1152},
        {"vocab_size": 50_368, "pad_token_id": 0},
    ),
}
"""Larger shapes: transformers' name of the family, sizes, and what its configuration has beside them."""

WEIGHT_STD = 0.06
"""Standard deviation of the weights. The usual 0.02 makes the vectors of all texts nearly the same."""

SAME_IN_ALL_TEXTS = 0.1
"""The factor of position and token type embeddings, which would drown the words."""

SHARP_ATTENTION, STRONG_ATTENTION = 4.0, 2.0
"""Factors for CLS pooling of queries and keys, and of values and outputs, or [CLS] learns little of the text."""


class ModelOptions(TypedDict, total=False):
    """What can be chosen of a model; each writer has its own defaults.

    pooling: sentence-transformers' own name: "cls", "mean", "lasttoken" (vLLM can't serve its others). vocab: rows of
    the embedding table. weight_std: of BERT; None for WEIGHT_STD, which spreads the vectors but amplifies rounding: for
    fp8 take transformers' 0.02.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int | None
    max_length: int
    pooling: str
    normalize: bool
    prompts: Mapping[str, str] | None
    default_prompt_name: str | None
    weight_std: float | None
    seed: int


SMALL: ModelOptions = {
    "layers": 3,
    "hidden": 96,
    "heads": 4,
    "intermediate": 192,
    "vocab": 3000,
    "max_length": 256,
    "pooling": "mean",
    "normalize": True,
    "prompts": None,
    "default_prompt_name": None,
    "weight_std": None,
    "seed": 0,
}
BERT: ModelOptions = {"layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536, "vocab": 30_522, "max_length": 512}


_BERT_TOKENS: dict[str, Any] = {
    "tokenizer_class": "BertTokenizerFast",
    "do_lower_case": True,
    "mask_token": "[MASK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
}


def write_bert(folder: str | Path, **options: "Unpack[ModelOptions]") -> Path:
    """BERT with the tokenizer of bert-base-uncased. vocab: at least its 30,522."""
    from transformers import BertConfig, BertModel

    chosen: ModelOptions = {**SMALL, **BERT, **options}
    config = BertConfig(
        **shape(chosen),
        vocab_size=chosen["vocab"] or BERT["vocab"],
        max_position_embeddings=max(512, chosen["max_length"]),
        initializer_range=chosen["weight_std"] or WEIGHT_STD,
    )
    tokenizer = Tokenizer.from_file(str(BERT_TOKENIZER))
    return write_model(Path(folder), BertModel, config, tokenizer, _BERT_TOKENS, chosen)


def write_preset(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a model of BERT_SHAPES or ENCODERS. Returns the folder."""
    if name in BERT_SHAPES:
        return write_bert(folder, **BERT_SHAPES[name], seed=seed)
    import transformers

    family, sizes, _ = ENCODERS[name]
    chosen: ModelOptions = {**SMALL, **BERT, **sizes, "seed": seed}  # type: ignore[typeddict-item]
    tokenizer = Tokenizer.from_file(str(BERT_TOKENIZER))
    return write_model(
        Path(folder), getattr(transformers, f"{family}Model"), _config(name), tokenizer, _BERT_TOKENS, chosen
    )


def write_reranker(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a reranker with one label, of a shape of BERT_SHAPES or ENCODERS. Returns the folder."""
    import torch
    import transformers

    family = ENCODERS[name][0] if name in ENCODERS else "Bert"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(transformers, f"{family}ForSequenceClassification")(_config(name, num_labels=1)).save_pretrained(folder)
    Tokenizer.from_file(str(BERT_TOKENIZER)).save(str(folder / "tokenizer.json"))
    tokens = {**_BERT_TOKENS, "model_max_length": BERT["max_length"]}
    # transformers' BERT tokenizer would give the second text of a pair the type 1, which these families lack.
    tokens |= {"model_input_names": ["input_ids", "attention_mask"]} if name in ENCODERS else {}
    write_json(folder / "tokenizer_config.json", tokens)
    return folder


def _config(name: str, **more: Any) -> Any:
    import transformers

    family, sizes, given = ENCODERS.get(name, ("Bert", BERT_SHAPES.get(name, {}), {}))
    chosen: Any = {**SMALL, **BERT, **sizes}
    # Deep models of random weights amplify rounding with more than transformers' own 0.02.
    deviation = chosen["weight_std"] or (0.02 if name in ENCODERS else WEIGHT_STD)
    return getattr(transformers, f"{family}Config")(**shape(chosen), **given, initializer_range=deviation, **more)


def cached_preset(name: str, cache: Path | None = None) -> Path:
    """Write the preset once, into `cache` or else the user's cache. Returns its folder."""
    folder = (cache or cache_folder() / "models") / name
    # The file that is written last.
    if not (folder / "config_sentence_transformers.json").exists():
        write_preset(name, folder)
    return folder


def shape(chosen: ModelOptions) -> dict[str, int]:
    """The sizes, as transformers' configurations name them."""
    return {
        "num_hidden_layers": chosen["layers"],
        "hidden_size": chosen["hidden"],
        "num_attention_heads": chosen["heads"],
        "intermediate_size": chosen["intermediate"],
    }


def write_model(
    folder: Path,
    model_class: Any,
    config: Any,
    tokenizer: Tokenizer,
    tokenizer_settings: Mapping[str, Any],
    chosen: ModelOptions,
) -> Path:
    """Write the model with random weights and all files of the hub's models. Returns the folder."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen["seed"])
        model = model_class(config)
    with torch.no_grad():
        _spread(model, chosen["pooling"])
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {**tokenizer_settings, "model_max_length": chosen["max_length"]})
    write_sentence_files(folder, config.hidden_size, chosen)
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


def write_sentence_files(folder: Path, hidden: int, chosen: ModelOptions) -> None:
    """The files that sentence-transformers adds to a model, in the form that most models of the hub still have.

    hidden: width of a token's vector.
    """
    names = ["Transformer", "Pooling", *(["Normalize"] if chosen["normalize"] else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    pooling = {f"pooling_mode_{key}": mode == chosen["pooling"] for mode, key in modes.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **pooling})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": chosen["max_length"], "do_lower_case": False})
    prompts = {"prompts": dict(chosen["prompts"] or {}), "default_prompt_name": chosen["default_prompt_name"]}
    write_json(folder / "config_sentence_transformers.json", {**prompts, "similarity_fn_name": "cosine"})


def write_json(path: Path, value: Any) -> None:
    """Write JSON in the form of the hub's files: indented, UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """The command: which model, and the folder to write."""
    parser = argparse.ArgumentParser(prog="python -m tritonembed_perf.models", description="Write a random model.")
    parser.add_argument("preset", choices=[*BERT_SHAPES, *ENCODERS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reranker", action="store_true", help="a reranker of this shape instead of an embedder")
    arguments = parser.parse_args()
    write = write_reranker if arguments.reranker else write_preset
    write(arguments.preset, arguments.folder, arguments.seed)
    print(f"wrote {arguments.preset} with random weights to {arguments.folder}")


EXTRA = 0.5
"""What an adapter adds to a layer's outputs, as a part of what the layer gives by itself: enough to turn vectors."""


def write_adapter(
    folder: Path,
    base: Path,
    targets: Sequence[str] | str,
    *,
    rank: int = 4,
    layers: Sequence[str] = (),
    seed: int = 0,
    **config: Any,
) -> Path:
    """An adapter of a model. base: the model's folder, with model.safetensors.

    targets: the ends of the layers' names; if it is one text, it is written as it is, and `layers` has the ends.
    config: more keys of adapter_config.json.
    """
    from safetensors.numpy import load_file, save_file

    given: dict[str, Any] = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
        **config,
    }
    rng = np.random.default_rng(seed)
    state: dict[str, Any] = {}
    ends = layers or targets
    for name, weight in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if weight.ndim != 2 or not any(f".{layer}".endswith(f".{end}") for end in ends):
            continue
        own = _of_layer(given.get("rank_pattern") or {}, layer, rank)
        size = EXTRA * float(np.std(weight)) / own
        stem = f"base_model.model.{layer}"
        state[f"{stem}.lora_A.weight"] = rng.standard_normal((own, weight.shape[1]), np.float32)
        state[f"{stem}.lora_B.weight"] = (size * rng.standard_normal((weight.shape[0], own))).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(given))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _of_layer(pattern: Mapping[str, int], layer: str, default: int) -> int:
    return next((value for end, value in pattern.items() if f".{layer}".endswith(f".{end}")), default)


if __name__ == "__main__":
    main()
