"""The cases that show whether a model's vectors are right, and the file of their vectors."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import ModelError
from tritonembed_engine.ragged import Ragged
from tritonembed_protocol.types import OUTPUTS

Vectors = npt.NDArray[np.float32]

UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile)
"""Exceptions of `numpy.load` and of reading its arrays if the file is of another kind or truncated."""

LENGTHS = (2, 3, 7, 16, 17, 33, 50, 64, 65, 100, 128, 129, 200, 350, 512)
"""Tokens per case: both sides of the lengths at which attention or the CUDA graph changes, up to 512."""

LONGEST = 2048
"""Tokens of a longer case, if the model accepts that many."""

TEXTS = {
    "empty": "",
    "blank": "   ",
    "one word": "hello",
    "sentence": "The railway company apologised for the delay.",
    "question": "how tall is mount everest in feet?",
    "upper case": "THE TRAIN LEAVES AT NINE",
    "punctuation": 'wait... what?! (no, really) -- it\'s "fine"; £5 & 10 %',
    "digits": "3.14159 26535 2026-11-29 +49 30 1234567",
    "lines": "first line\nsecond line\r\n\ttabbed\n\n",
    "accents": "naïve café Ünïcödé Łódź façade São Tomé",
    "Greek and Cyrillic": "Η γρήγορη αλεπού. Быстрая коричневая лиса.",
    "Arabic and Hebrew": "الثعلب البني السريع שועל חום מהיר",
    "Indic and Thai": "तेज़ भूरी लोमड़ी สุนัขจิ้งจอกสีน้ำตาล",
    "Chinese, Japanese, Korean": "敏捷的棕色狐狸 素早い茶色の狐 빠른 갈색 여우",
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇪🇺",
    "special tokens": "[CLS] [SEP] [PAD] [MASK] <s> </s> <pad> <unk> <mask> <|endoftext|> <eos> <bos>",
    "padding inside": "before <pad> between [PAD] after <pad>",
    "control characters": "zero\u200bwidth soft\u00adhyphen bell\u0007 nul\u0000",
    "code": "def f(x: int) -> int:\n    return {k: v for k, v in x.items()}",
    "one long word": "antidisestablishmentarianism" * 5,
    "repeated": "spam " * 40,
}
"""Texts by name. The odd texts show differences between tokenizers and between positions."""

LONG_TEXT = " ".join(
    f"{word} {n}" for n, word in enumerate(["river", "engine", "Montag", "café", "quiet", "7th"] * 600)
)
"""A text that is longer than every model's maximum. Cut to each of LENGTHS, it gives further cases."""


@dataclass(frozen=True)
class Case:
    """A sentence. name: for messages, which contain no text. ids: int32, little-endian. skip: tokens not pooled.

    text, input_type: the origin of `ids`, if they are of a whole text. query: the pair's query, if `ids` are of a pair.
    """

    name: str
    ids: bytes
    skip: int = 0
    text: str | None = None
    input_type: str | None = None
    query: str | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids) // 4


@dataclass(frozen=True)
class Reference:
    """Cases and their vectors: float32 [cases, dimensions], of any length. source: the library that computed them.

    rounding: by 16-bit type, the largest distance between this type and float32 in transformers itself. of_scores:
    whether they are a classifier's logits, [cases, labels], which `distance` compares in another way. unknown: keys of
    config.json that transformers does not know, and that have no effect.
    """

    cases: Sequence[Case]
    vectors: Vectors
    source: str
    rounding: dict[str, float]
    unknown: Sequence[str] = ()
    of_scores: bool = False
    token_outputs: Mapping[str, Ragged] = field(default_factory=dict)
    """Weights and vectors of tokens, for a few of the cases; see `token_check`."""

    def save(self, file: Path) -> None:
        """Write an .npz atomically."""
        part = file.with_name(f".{file.name}.part.npz")
        np.savez(
            part,
            names=np.array([case.name for case in self.cases]),
            # numpy's own strings lose trailing NULs.
            texts=np.array(json.dumps([case.text for case in self.cases])),
            queries=np.array(json.dumps([case.query for case in self.cases])),
            input_types=np.array([case.input_type or "" for case in self.cases]),
            skips=np.array([case.skip for case in self.cases]),
            tokens=np.array([case.tokens for case in self.cases]),
            ids=np.frombuffer(b"".join(case.ids for case in self.cases), dtype="<i4"),
            vectors=self.vectors,
            source=np.array(self.source),
            of_scores=np.array(self.of_scores),
            unknown=np.array(list(self.unknown), dtype=str),
            **{f"rounding_{kind}": np.array(value) for kind, value in self.rounding.items()},
            **{f"counts_of_{name}": output.counts for name, output in self.token_outputs.items()},
            **{f"rows_of_{name}": output.rows for name, output in self.token_outputs.items()},
        )
        part.replace(file)


def load(file: Path) -> Reference:
    """A reference from a file of `save`. Raises ModelError."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            ends = np.cumsum(stored["tokens"])
            pieces = np.split(stored["ids"].astype("<i4"), ends[:-1])
            cases = [
                Case(str(name), ids.tobytes(), int(skip), text, str(kind) or None, query)
                for name, ids, skip, text, kind, query in zip(
                    stored["names"],
                    pieces,
                    stored["skips"],
                    json.loads(str(stored["texts"])),
                    stored["input_types"],
                    json.loads(str(stored["queries"])),
                    strict=True,
                )
            ]
            rounding = {
                key.removeprefix("rounding_"): float(stored[key]) for key in stored.files if key.startswith("rounding_")
            }
            unknown = [str(key) for key in stored["unknown"]]
            of_scores = bool(stored["of_scores"])
            token_outputs: dict[str, Ragged] = {
                name: Ragged(stored[f"counts_of_{name}"], stored[f"rows_of_{name}"])
                for name in OUTPUTS
                if f"rows_of_{name}" in stored.files
            }
            source = str(stored["source"])
            return Reference(cases, stored["vectors"], source, rounding, unknown, of_scores, token_outputs)
    except UNREADABLE as error:
        raise ModelError(f"the reference {file.name} can't be read ({type(error).__name__})") from None
