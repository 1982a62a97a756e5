"""Ids of ASCII text under BERT's WordPiece: the same as those of `tokenizers`, about ten times faster.

`tokenizers` spends most of its time on normalising each character and keeping its alignment to the original. For ASCII
that is one `lower` and one `translate`, and a word's ids depend on the word alone: they are looked up.

* BertNormalizer on ASCII: control characters other than tab, newline and carriage return are deleted, letters lowered
  (if the model says so); accents and Chinese characters do not occur.
* BertPreTokenizer on ASCII: words end at whitespace and at punctuation, and each punctuation character is a word.
* WordPiece works on one word at a time, and finds a word that is in the vocabulary as a whole.

So a text is split at white space, and each part is looked up; a part with punctuation is divided into words once.

Text that is not ASCII, or that holds the text of an added token such as [SEP], is left to `tokenizers`.
"""

import itertools
import json
import re
from array import array
from typing import Any

from tokenizers import Tokenizer

_WORD = re.compile(r"[^\t\n\r !-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
_DELETED = dict.fromkeys([*range(0x20), 0x7F])
for _kept in b"\t\n\r":
    del _DELETED[_kept]

LARGEST_CACHE = 200_000
LONGEST_CACHED_WORD = 64
"""Characters; bounds the memory that unusual texts can take."""

LONG_TEXT = 1 << 14
"""Characters; longer text is read word by word, up to the model's maximum."""


class _Ids(dict[str, bytes]):
    """From the text between two spaces to its ids, int32: a word, or words and punctuation such as `end.`

    Missing texts are added, so that a text's look-ups need no step in Python each.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        super().__init__(
            (word, _pack([number]))
            for word, number in vocabulary.items()
            if word.isascii() and _WORD.fullmatch(word) and len(word) <= LONGEST_CACHED_WORD
        )
        self._model: Any = tokenizer.model

    def __missing__(self, part: str) -> bytes:
        words = _WORD.findall(part)
        if len(words) == 1:
            found = _pack([token.id for token in self._model.tokenize(part)])
        else:
            found = b"".join(map(self.__getitem__, words))
        if len(self) < LARGEST_CACHE and len(part) <= LONGEST_CACHED_WORD:
            self[part] = found
        return found


def _pack(ids: list[int]) -> bytes:
    # array is the fastest way from ints to bytes. Every machine that Triton runs on is little-endian.
    return array("i", ids).tobytes()


class AsciiWordPiece:
    """Ids of ASCII text, int32, without special tokens; None for other text."""

    def __init__(self, tokenizer: Tokenizer, lowercase: bool, added: list[str]) -> None:
        self._lowercase = lowercase
        # Searched after lowering, however a token is matched: at worst `tokenizers` is called needlessly.
        self._added = [token.lower() for token in added]
        self._ids = _Ids(tokenizer)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "AsciiWordPiece | None":
        """The fast path of a tokenizer of the kind in the module's docstring; None for any other."""
        spec = json.loads(tokenizer.to_str())
        normalizer, pre_tokenizer, model = (spec.get(key) or {} for key in ("normalizer", "pre_tokenizer", "model"))
        kinds = (normalizer.get("type"), pre_tokenizer.get("type"), model.get("type"))
        if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece") or not normalizer.get("clean_text"):
            return None
        if model.get("max_input_chars_per_word", 0) < LONGEST_CACHED_WORD:
            return None
        # Such a token is matched after normalisation, so it can match a text that does not contain it literally.
        if any(token["normalized"] for token in spec["added_tokens"]):
            return None
        # With a lowering normalizer in front (sentence-transformers' do_lower_case) the type is Sequence, not served.
        return cls(tokenizer, bool(normalizer.get("lowercase")), [token["content"] for token in spec["added_tokens"]])

    def encode(self, text: str, at_most: int | None) -> bytes | None:
        """Ids of an ASCII text. at_most: how many of its first ids are needed (the result may have more)."""
        lowered = text.lower()
        for token in self._added:
            if token in lowered:
                return None
        cleaned = (lowered if self._lowercase else text).translate(_DELETED)
        if len(cleaned) <= LONG_TEXT:
            # Of the white space that `split` knows, only BertPreTokenizer's is left in ASCII.
            return b"".join(map(self._ids.__getitem__, cleaned.split()))
        words = (match.group() for match in _WORD.finditer(cleaned))
        # A word gives at least one id.
        return b"".join(map(self._ids.__getitem__, itertools.islice(words, at_most)))
