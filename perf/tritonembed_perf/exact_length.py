"""Texts with an exact number of tokens: loads whose tokens a second mean what they say."""

import random
from collections.abc import Sequence

from tokenizers import Tokenizer

ATTEMPTS = 100


def exact_length_texts(tokenizer: Tokenizer, length_in_tokens: int, count: int, seed: int) -> list[str]:
    """`count` different texts of random whole words of the vocabulary, each of exactly `length_in_tokens` tokens.

    Special tokens count. tokenizer: a `tokenizers.Tokenizer` (of transformers: `backend_tokenizer`), no truncation.
    Raises ValueError where the tokenizer can't do it (a length that its special tokens alone exceed, say).
    """
    rng = random.Random(seed)
    needed = length_in_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
    words = whole_words(tokenizer)
    if needed < 0 or not words:
        raise ValueError(f"this tokenizer has no texts of {length_in_tokens} tokens")
    # Each word is one token; the check below is for tokenizers that treat the first word of a text differently.
    texts: list[str] = []
    for _ in range(ATTEMPTS):
        wanted = count - len(texts)
        candidates = [" ".join(rng.choices(words, k=needed)) for _ in range(wanted)]
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(candidates)]
        texts += [text for text, length in zip(candidates, lengths, strict=True) if length == length_in_tokens]
        if len(texts) == count:
            return texts
    raise ValueError(f"found only {len(texts)} texts of {length_in_tokens} tokens")


def whole_words(tokenizer: Tokenizer) -> Sequence[str]:
    """Words of lower-case ASCII letters that are one token each, wherever in a text they stand; sorted."""
    pieces = {piece.lstrip("Ġ▁") for piece in tokenizer.get_vocab()}
    words = sorted(piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower())
    alone = tokenizer.encode_batch(words, add_special_tokens=False)
    after = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
    return [
        word
        for word, first, both in zip(words, alone, after, strict=True)
        if len(first.ids) == 1 and len(both.ids) == 2 and len(word) > 1
    ]
