"""Tokenizers of the common kinds, each with a tokenizer_config.json as the hub's models have it.

They are trained on a small corpus in many scripts: real behaviour without a model hub.
"""

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.processors import TemplateProcessing

from tritonembed_perf.models import BERT_TOKENIZER

CORPUS = Path(__file__).parent / "many_scripts.txt"
GENERATED_LINES = 2000

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 split a text, verbatim from their tokenizer.json."""

CLIP_REGEX = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP finds words, verbatim from its tokenizer.json."""


def training_corpus(seed: int) -> list[str]:
    """Sentences in twenty languages, then lines of made-up words from each one's letters, numbers among them."""
    sentences = CORPUS.read_text(encoding="utf-8").splitlines()
    rng = random.Random(seed)
    lines = list(sentences)
    for number in range(GENERATED_LINES):
        letters = [c for c in sentences[number % len(sentences)] if not c.isspace()]
        words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(10)]
        lines.append(" ".join([*words, str(rng.randrange(10_000))]))
    return lines


def roberta_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Byte-level BPE as RoBERTa has it: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = _byte_level_bpe(vocab_size, seed, ["<s>", "<pad>", "</s>", "<unk>", mask], regex=None)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def modernbert_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Byte-level BPE as ModernBERT has it, with its added tokens for runs of spaces."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True, special=True)]
    tokenizer = _byte_level_bpe(vocab_size, seed, special, regex=None)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(2, 9)])
    tokenizer.post_processor = _template("[CLS] $A [SEP]", tokenizer)
    return tokenizer


def qwen3_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Byte-level BPE as Qwen3-Embedding has it: its post-processor appends <|endoftext|>."""
    tokenizer = _byte_level_bpe(vocab_size, seed, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], regex=QWEN2_REGEX)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _template("$A <|endoftext|>", tokenizer)]
    )
    return tokenizer


def clip_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """BPE with an end-of-word mark as CLIP has it: the start and the end token are the last ids.

    The pieces are beginnings of the most frequent words: with such a mark the trainer gives other pieces each time.
    """
    mark, ends = "</w>", ["<|startoftext|>", "<|endoftext|>"]
    split = pre_tokenizers.Split(Regex(CLIP_REGEX), behavior="removed", invert=True)
    words = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    lower = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    counts = Counter(
        word for line in training_corpus(seed) for word, _ in words.pre_tokenize_str(lower.normalize_str(line))
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*alphabet, *(letter + mark for letter in alphabet)])
    merges: list[tuple[str, str]] = []
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        start, *rest = [*word[:-1], word[-1] + mark]
        for letter in rest:
            if start + letter not in pieces and len(pieces) + len(ends) < vocab_size:
                pieces[start + letter] = None
                merges.append((start, letter))
            start += letter
            if start not in pieces:
                break
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *ends])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=ends[1], end_of_word_suffix=mark))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = lower, words, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, normalized=True, special=True) for end in ends])
    first, last = ((end, vocabulary[end]) for end in ends)
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def xlm_roberta_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Unigram over Metaspace words as XLM-R has it: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last.

    The pieces are learned as BPE and scored by how often they occur: the Unigram trainer gives other pieces each time.
    """
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    corpus = training_corpus(seed)
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = words
    learned.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab_size - 5, show_progress=False))
    counts = Counter(piece for encoding in learned.encode_batch(corpus) for piece in encoding.tokens)
    total = counts.total()
    # A piece that never occurs alone is still worth more than unknown.
    scored = [(piece, math.log(max(counts[piece], 0.5) / total)) for piece in sorted(learned.get_vocab())]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *scored, ("<mask>", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([piece for piece, _ in special])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = _template("<s> $A </s>", tokenizer, pair="<s> $A </s> </s> $B </s>")
    return tokenizer


def _byte_level_bpe(vocab_size: int, seed: int, special: list[Any], regex: str | None) -> Tokenizer:
    """regex: how words are split; None: as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [pre_tokenizers.Split(Regex(regex), behavior="isolated")] if regex else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_corpus(seed), trainer)
    return tokenizer


def _template(single: str, tokenizer: Tokenizer, pair: str | None = None) -> processors.TemplateProcessing:
    special = [(piece, tokenizer.token_to_id(piece)) for piece in single.split() if piece != "$A"]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


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
    return roberta_tokenizer(VOCABULARY, 0), {**settings, "model_max_length": length, **_angle_tokens()}


def xlm_roberta(length: int = 512) -> Vocabulary:
    """Unigram over many scripts."""
    settings = {"tokenizer_class": "XLMRobertaTokenizer"}
    return xlm_roberta_tokenizer(VOCABULARY, 0), {**settings, "model_max_length": length, **_angle_tokens()}


def clip() -> Vocabulary:
    """Lower-case BPE in which padding is the end token, as in CLIP."""
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    return clip_tokenizer(VOCABULARY, 0), {**settings, **tokens}


def modernbert(length: int = 8192) -> Vocabulary:
    """Byte-level BPE with added tokens for runs of spaces."""
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    return modernbert_tokenizer(VOCABULARY, 0), {**settings, **tokens}


def qwen(length: int = 131_072) -> Vocabulary:
    """Byte-level BPE whose post-processor appends <|endoftext|>."""
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": length, "add_prefix_space": False}
    tokens = {"bos_token": None, "eos_token": end, "pad_token": end, "unk_token": None}
    return qwen3_tokenizer(VOCABULARY, 0), {**settings, **tokens}


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
    words = [f"▁{word}" for line in training_corpus(0) for word in line.split()]
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
