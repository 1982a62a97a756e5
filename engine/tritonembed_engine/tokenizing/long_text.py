"""Where a very long text may be cut before tokenizing, so that the ids that are kept do not change.

Truncation keeps the first (END) or the last (START) `max_length` ids, so of a text of a megabyte only a few thousand
characters have to be tokenized. A cut is allowed only at the one space of `x y`, where x and y are upper- or lower-case
letters or decimal digits (Unicode Lu, Ll, Nd). The space goes to the right part. There, for the kinds of tokenizer
listed below and no others, ids(left + right) = ids(left) + ids(right), special tokens aside:

- Added tokens are found first. None of them can lie across the cut: `_crosses` refuses tokenizers with an added token
  that contains a single space, or that takes in the space next to it. (Two spaces or more can't match a single space.)
- Normalizers of these kinds look at single characters, at combining sequences or at grapheme clusters. A space starts a
  new one of each, and so does a letter or a digit after it: neither is a combining mark nor extends a cluster. What
  precedes x must be ASCII or plain too, because a prepended mark would join x's cluster. A character map can contain
  anything, so each x and y is passed to the normalizer itself (`_is_plain`): alone it must stay letters and digits, and
  with a space between two of it the result must be the same on both sides.
- Pre-tokenizers of these kinds then split at the space: no match that begins in x continues into white space, and every
  pattern begins a new match at a space after a letter or digit. Their only look-ahead is within white space. Later
  pre-tokenizers of a sequence see one piece at a time. Rules for the beginning of a text (add_prefix_space, Metaspace's
  prepend) don't change a part that begins with a space.
- The models see one piece at a time (BPE dropout would be random, and is refused).

So if a left part alone has at least as many tokens as truncation keeps, they are the first tokens of the whole text.
The same holds for a right part and the last tokens.
"""

import json
import re
import unicodedata
from typing import Any

from tokenizers import Tokenizer

PLAIN_CATEGORIES = frozenset({"Lu", "Ll", "Nd"})

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLIT_PATTERNS = frozenset({_GPT2, _QWEN2, _LLAMA3})
"""How these models split a text, verbatim from their tokenizer.json."""

_NORMALIZERS = frozenset(
    {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Precompiled", "Strip", "Replace"}
)
_LATER_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace", "WhitespaceSplit"}
)
_POST_PROCESSORS = frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"})
_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})

_LONE_SPACE = re.compile(r"(?<!\s) (?!\s)")


class SafeCuts:
    """Finds safe cuts of a text for one tokenizer; none if the tokenizer is not of a known kind."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._normalizer = tokenizer.normalizer
        self._known: dict[str, bool] = {}
        self.possible = (
            all(map(_is_known_normalizer, _parts(tokenizer.normalizer, "normalizers")))
            and _splits_at_space(_parts(tokenizer.pre_tokenizer, "pretokenizers"))
            and all(part["type"] in _POST_PROCESSORS for part in _parts(tokenizer.post_processor, "processors"))
            and type(tokenizer.model).__name__ in _MODELS
            and not getattr(tokenizer.model, "dropout", None)
            and not any(map(self._crosses, tokenizer.get_added_tokens_decoder().values()))
        )

    def prefix(self, text: str, at_least: int) -> str:
        """The shortest safe beginning of `text` with at least `at_least` characters, or the whole text."""
        space = text.find(" ", at_least) if self.possible else -1
        while space != -1 and not self._is_safe(text, space):
            space = text.find(" ", space + 1)
        return text if space == -1 else text[:space]

    def suffix(self, text: str, at_least: int) -> str:
        """The shortest safe end of `text` with at least `at_least` characters, or the whole text."""
        space = text.rfind(" ", 0, max(0, len(text) - at_least + 1)) if self.possible else -1
        while space != -1 and not self._is_safe(text, space):
            space = text.rfind(" ", 0, space)
        return text if space == -1 else text[space:]

    def _is_safe(self, text: str, space: int) -> bool:
        if not 0 < space < len(text) - 1:
            return False
        if not (self._is_plain(text[space - 1]) and self._is_plain(text[space + 1])):
            return False
        return space == 1 or text[space - 2].isascii() or self._is_plain(text[space - 2])

    def _is_plain(self, character: str) -> bool:
        if character not in self._known:
            self._known[character] = unicodedata.category(character) in PLAIN_CATEGORIES and self._stays(character)
        return self._known[character]

    def _stays(self, character: str) -> bool:
        if self._normalizer is None:
            return True
        alone: str = self._normalizer.normalize_str(character)
        return alone.isalnum() and self._normalizer.normalize_str(f"{character} {character}") == f"{alone} {alone}"

    def _crosses(self, token: Any) -> bool:
        """Whether an added token could take in the space of a cut."""
        contents = [token.content]
        if token.normalized and self._normalizer is not None:
            contents.append(self._normalizer.normalize_str(token.content))
        return any(
            _LONE_SPACE.search(content)
            or (token.lstrip and content[:1].isalnum())
            or (token.rstrip and content[-1:].isalnum())
            for content in contents
        )


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a tokenizer's component as JSON, with nested sequences flattened."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), key)


def _flat(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state[key] for part in _flat(inner, key)]


def _is_known_normalizer(part: dict[str, Any]) -> bool:
    if part["type"] == "Strip":
        return not part["strip_left"]
    if part["type"] == "Replace":
        pattern = part["pattern"]
        if "Regex" in pattern:
            return bool(pattern["Regex"] == " {2,}")
        # A pattern without a space, letter or digit can't reach the cut.
        return not any(c.isspace() or c.isalnum() for c in pattern["String"])
    return str(part["type"]) in _NORMALIZERS


def _splits_at_space(parts: list[dict[str, Any]]) -> bool:
    if not parts or not all(part["type"] in _LATER_PRE_TOKENIZERS for part in parts):
        return False
    first = parts[0]
    if first["type"] == "ByteLevel":
        return bool(first["use_regex"])
    if first["type"] == "Metaspace":
        return bool(first["split"]) and first["replacement"] == "▁"
    if first["type"] == "Split":
        known = first["pattern"].get("Regex") in SPLIT_PATTERNS
        return known and first["behavior"] == "Isolated" and not first["invert"]
    return first["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
