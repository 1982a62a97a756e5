"""Ids of ASCII text under BERT's WordPiece: the same as those of `tokenizers`, about ten times faster.

`tokenizers` spends most of its time on normalising each character and keeping its alignment to the original. For ASCII
that is one `lower` and one `translate`, and a word's ids depend on the word alone: they are looked up.

* BertNormalizer on ASCII: control characters other than tab, newline and carriage return are deleted, letters lowered
  (if the model says so); accents and Chinese characters do not occur.
* BertPreTokenizer on ASCII: words end at whitespace and at punctuation, and each punctuation character is a word.
* WordPiece works on one word at a time, and finds a word that is in the vocabulary as a whole.

Text that is not ASCII, or that holds the text of an added token such as [SEP], is left to `tokenizers`.
"""

import itertools
import json
import re
from collections.abc import Iterable

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


class AsciiWordPiece:
    """Ids of ASCII text, without special tokens; None for other text."""

    def __init__(self, tokenizer: Tokenizer, lowercase: bool, added: list[str]) -> None:
        self._model = tokenizer.model
        self._lowercase = lowercase
        # Searched after lowering, however a token is matched: at worst `tokenizers` is called needlessly.
        self._added = [token.lower() for token in added]
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self._ids = {w: (i,) for w, i in vocabulary.items() if w.isascii() and _WORD.fullmatch(w) and len(w) <= 64}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "AsciiWordPiece | None":
        """The fast path of a tokenizer that the module's docstring describes; None for any other."""
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

    def encode(self, text: str, at_most: int | None) -> list[int] | None:
        """Ids of an ASCII text. at_most: how many of its first ids are needed (the result may have more)."""
        lowered = text.lower()
        if any(token in lowered for token in self._added):
            return None
        cleaned = (lowered if self._lowercase else text).translate(_DELETED)
        if len(cleaned) <= LONG_TEXT:
            return self._look_up(_WORD.findall(cleaned))
        words = (match.group() for match in _WORD.finditer(cleaned))
        # A word gives at least one id.
        return self._look_up(words if at_most is None else itertools.islice(words, at_most))

    def _look_up(self, words: Iterable[str]) -> list[int]:
        ids: list[int] = []
        known = self._ids
        for word in words:
            found = known.get(word)
            ids += self._learn(word) if found is None else found
        return ids

    def _learn(self, word: str) -> tuple[int, ...]:
        found = tuple(token.id for token in self._model.tokenize(word))
        if len(self._ids) < LARGEST_CACHE and len(word) <= LONGEST_CACHED_WORD:
            self._ids[word] = found
        return found
