"""Tokenizers of the common kinds, trained on a small corpus in many scripts: real behaviour without a model hub."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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
    tokenizer.post_processor = _template("<s> $A </s>", tokenizer)
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


def _template(single: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    special = [(piece, tokenizer.token_to_id(piece)) for piece in single.split() if piece != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=special)
