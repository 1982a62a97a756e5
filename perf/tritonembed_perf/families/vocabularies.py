"""Tokenizers, each with a tokenizer_config.json as the hub's models have it."""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.processors import TemplateProcessing

from tritonembed_perf.families import generated_tokenizers as generated
from tritonembed_perf.models import BERT_TOKENIZER

VOCABULARY = 1500
"""Number of tokens of a generated tokenizer."""

BERT_VOCABULARY = 30_522

Vocabulary = tuple[Tokenizer, dict[str, Any]]


def bert(length: int = 512) -> Vocabulary:
    """WordPiece of bert-base-uncased. length: `model_max_length`."""
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, **tokens}
    return Tokenizer.from_file(str(BERT_TOKENIZER)), {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": length,
        **settings,
    }


def roberta(length: int = 512) -> Vocabulary:
    """Byte-level BPE, as in RoBERTa."""
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "trim_offsets": True}
    return generated.roberta_tokenizer(VOCABULARY, 0), {**settings, "model_max_length": length, **_angle_tokens()}


def xlm_roberta(length: int = 512) -> Vocabulary:
    """Unigram over many scripts."""
    settings = {"tokenizer_class": "XLMRobertaTokenizer"}
    return generated.xlm_roberta_tokenizer(VOCABULARY, 0), {**settings, "model_max_length": length, **_angle_tokens()}


def clip() -> Vocabulary:
    """Lower-case BPE in which padding is the end token, as in CLIP."""
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    return generated.clip_tokenizer(VOCABULARY, 0), {**settings, **tokens}


def modernbert(length: int = 8192) -> Vocabulary:
    """Byte-level BPE with added tokens for runs of spaces."""
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    return generated.modernbert_tokenizer(VOCABULARY, 0), {**settings, **tokens}


def qwen(length: int = 131_072) -> Vocabulary:
    """Byte-level BPE whose post-processor appends <|endoftext|>."""
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": length, "add_prefix_space": False}
    tokens = {"bos_token": None, "eos_token": end, "pad_token": end, "unk_token": None}
    return generated.qwen3_tokenizer(VOCABULARY, 0), {**settings, **tokens}


def llama(length: int = 32_768, end: bool = True) -> Vocabulary:
    """BPE with byte fallback and without splitting into words, as in Llama and Mistral. end: append </s>."""
    tokenizer = _byte_fallback(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    single, special = ("<s> $A </s>", [("<s>", 1), ("</s>", 2)]) if end else ("<s> $A", [("<s>", 1)])
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "add_bos_token": True}
    return tokenizer, {**settings, "add_eos_token": end, **tokens}


def gemma(length: int = 2048) -> Vocabulary:
    """BPE with byte fallback, as in Gemma. Ids: <pad> 0, <eos> 1, <bos> 2, <unk> 3."""
    tokenizer = _byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    return tokenizer, {**settings, **tokens}


def _byte_fallback(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=["▁"],
        show_progress=False,
    )
    # Split lines at blanks: training on a whole line as one word takes long and learns nothing.
    words = [f"▁{word}" for line in generated.training_corpus(0) for word in line.split()]
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())
    vocabulary = learned["model"]["vocab"]
    # The bytes follow the special tokens, as in Llama's own vocabulary.
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    rest = [piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if piece not in special]
    learned["model"]["vocab"] = {piece: place for place, piece in enumerate([*names, *rest])}
    return Tokenizer.from_str(json.dumps(learned))


def _angle_tokens() -> dict[str, str]:
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return {f"{name}_token": token for name, token in names.items()}
