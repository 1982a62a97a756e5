"""The reference: the texts of every case, and sentence-transformers' vectors and logits for them.

It is independent: nothing of our engine is imported. The texts are empty, odd, in several scripts, with literal special
tokens, far too long. The logits of some rerankers come from transformers.
"""

import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_perf.families.registry import load_cases

_ANIMALS = "The quick brown fox jumps over the lazy dog while seventeen owls watch from the old barn. "

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n\t ",
    "a",
    "Hello world",
    "The cat sat on the mat.",
    "THE CAT SAT ON THE MAT.",
    "  two  spaces  inside  and  around  ",
    "A cat\nsat\r\non\tthe mat.",
    "How do I bake sourdough bread without a dutch oven?",
    "stock prices fell sharply today after the announcement",
    "naïve café Ünïcödé Ærøskøbing İstanbul ﬁne ﬂow",
    "e\u0301 o\u0308 n\u0303 combining marks",
    "Все люди рождаются свободными и равными.",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由である。",
    "모든 인간은 태어날 때부터 자유롭다.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता प्राप्त है।",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין",
    "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "😀",
    "emoji 😀👩‍👩‍👧‍👦🇨🇭 in between",
    "1234.5 + 67,890 = 3.14e10; $5 (10%) #tag @name",
    "https://example.com/path?query=1&other=two#fragment",
    "def f(x):\n    return x ** 2  # comment",
    "<s> </s> <pad> <unk> <mask>",
    "a <pad> b",
    "[CLS] [SEP] [PAD] [UNK] [MASK]",
    "before [SEP] after [MASK] end",
    "<|endoftext|> <|im_start|>user <|im_end|> <bos> <eos>",
    "zero\u200bwidth\u00a0and\u00adsoft\ufeff marks",
    "control \x00 \x07 characters",
    "replacement \ufffd character",
    "supercalifragilisticexpialidocious" * 3,
    "x" * 250,
    "!?.,;:" * 20,
    _ANIMALS * 2,
    _ANIMALS * 4,
    _ANIMALS * 30,
    "人" * 500,
    "😀" * 200,
)

PROMPTED: tuple[str, ...] = tuple(TEXTS[i] for i in (0, 4, 5, 6, 9, 13, 14, 22, 28, 37, 39))
"""The texts that are also embedded as queries and as passages. These are enough to test prompts."""

KINDS: dict[str, tuple[str, ...]] = {"plain": TEXTS, "query": PROMPTED, "passage": PROMPTED}
"""The texts per input type; "plain" is a request without an input type."""


OTHER = "Which animals watch from the old barn?"
"""The query of every text that is a passage, and the text of every query."""

Logits = npt.NDArray[np.float32]


def pair_of(kind: str, text: str) -> tuple[str, str] | str:
    """What is scored for a text of `texts.KINDS`: (query, text), or the text alone for "plain"."""
    if kind == "plain":
        return text
    return (text, OTHER) if kind == "query" else (OTHER, text)


def logits_of(folder: Path) -> tuple[dict[str, list[Logits | None]], str]:
    """The logits by kind: float32 [labels] for each text; None for one that can't be scored. And the last problem."""
    score = _yes_or_no(folder) if _generates(folder) else _cross_encoder(folder)
    rows: dict[str, list[Logits | None]] = {}
    problem = ""
    for kind, texts in KINDS.items():
        rows[kind] = []
        for text in texts:
            try:
                rows[kind].append(score(pair_of(kind, text)))
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                rows[kind].append(None)
    return rows, problem


def _generates(folder: Path) -> bool:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    return str(architecture) in ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification")


def _cross_encoder(folder: Path) -> Callable[[Any], Logits]:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})

    def score(given: tuple[str, str] | str) -> Logits:
        if isinstance(given, str):
            # It scores pairs alone. Its model takes texts, too.
            inputs = model.tokenizer(given, truncation=True, max_length=model.max_seq_length, return_tensors="pt")
            with torch.no_grad():
                return np.asarray(model.model(**inputs).logits[0].float(), np.float32)
        _check_query(model.tokenizer, given[0], model.max_seq_length)
        found = model.predict([given], activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(found, np.float32).reshape(-1)

    return score


def _check_query(tokenizer: Any, query: str, longest: int) -> None:
    """Raise ValueError for a query that the engine refuses, or that only the engine does not cut."""
    if not query or len(tokenizer(query).input_ids) > longest // 2:
        raise ValueError("the query is empty or long")


def _yes_or_no(folder: Path) -> Callable[[Any], Logits]:
    """The code on the card of Qwen3-Reranker, and of its conversion to one label."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = json.loads((folder / "config.json").read_text())
    converted = config["architectures"][0].endswith("ForSequenceClassification")
    kind = AutoModelForSequenceClassification if converted else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    no, yes = tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")
    longest = int(config["max_position_embeddings"])
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    task = "Given a web search query, retrieve relevant passages that answer the query"

    def score(given: tuple[str, str] | str) -> Logits:
        if isinstance(given, str):
            raise ValueError("it scores pairs alone")
        _check_query(tokenizer, given[0], longest)
        whole = f"<Instruct>: {task}\n<Query>: {given[0]}\n<Document>: {given[1]}"
        room = longest - len(before) - len(after)
        ids = tokenizer(whole, truncation="longest_first", max_length=room)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *ids, *after]])).logits
        found = logits[0] if converted else (logits[0, -1, yes] - logits[0, -1, no])[None]
        return np.asarray(found.float(), np.float32)

    return score


Rows = list[npt.NDArray[np.float32] | None]

_CLASSES = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi_vector": "MultiVectorEncoder"}
"""sentence-transformers' class, by the output that is compared."""


def prepare() -> None:
    """Import the libraries that every case needs."""
    # One thread is enough for tiny models. Several would wait for each other on a busy machine.
    os.environ.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    warnings.filterwarnings("ignore")
    import sentence_transformers  # noqa: F401
    from sentence_transformers.sentence_transformer import modules  # noqa: F401

    load_cases()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Write a case's folder, then embed the texts. job: "case", "folder" (to write), "vectors" (.npz to write).

    Returns {"refused": why} if sentence-transformers can't load the model or embeds no text at all.
    """
    case = load_cases()[job["case"]]
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    case.write(folder)
    if case.reference:
        folder = folder.with_name(f"{folder.name}_reference")
        folder.mkdir()
        case.reference(folder)
    try:
        if case.classifies:
            from tritonembed_perf.families.reference import logits_of

            rows, problem = logits_of(folder)
        else:
            rows, problem = _embed(_load(folder, case.trusted or case.reference_code, case.output), case.output)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    if all(row is None for listed in rows.values() for row in listed):
        return {"refused": f"no text can be embedded ({problem})"}
    write_rows(Path(job["vectors"]), rows)
    return {}


def write_rows(path: Path, rows: dict[str, Rows]) -> None:
    """Write vectors by input type: float32 [texts, dimensions], with NaN for a text without a vector."""
    arrays = {}
    for kind, listed in rows.items():
        width = max((len(row) for row in listed if row is not None), default=0)
        missing = np.full(width, np.nan, np.float32)
        # Texts have different numbers of tokens, and so of their vectors' numbers.
        arrays[kind] = np.stack([missing if row is None else np.pad(row, (0, width - len(row))) for row in listed])
    np.savez(path, **arrays)


def _flat(output: Any) -> npt.NDArray[np.float32]:
    """A sparse output as the weights of the whole vocabulary; the vectors of tokens one after the other."""
    if getattr(output, "is_sparse", False):
        output = output.to_dense()
    return np.asarray(output, np.float32).reshape(-1)


def _load(folder: Path, trusted: bool, output: str) -> Any:
    import sentence_transformers
    import torch

    return getattr(sentence_transformers, _CLASSES[output])(
        str(folder),
        device="cpu",
        trust_remote_code=trusted,
        local_files_only=True,
        # Without this, weights of 16 bits are computed in 16 bits.
        model_kwargs={"dtype": torch.float32},
    )


def _embed(model: Any, output: str) -> tuple[dict[str, Rows], str]:
    """Embed each text alone, so that nothing depends on padding. Returns the vectors and the last problem."""
    methods = {"plain": model.encode, "query": model.encode_query, "passage": partial(model.encode_document)}
    # sentence-transformers gives every model an empty prompt `document`, and prefers it to `passage` and `corpus`. A
    # request that asks for `passage` means the prompt of that name.
    name = next((name for name in ("document", "passage", "corpus") if model.prompts.get(name)), None)
    if name:
        methods["passage"] = partial(model.encode_document, prompt_name=name)
    rows: dict[str, Rows] = {}
    problem = ""
    for kind, texts in KINDS.items():
        rows[kind] = []
        for text in texts:
            try:
                # The engine normalises again after a request's `dimensions`, whose default is truncate_dim.
                if output != "dense":
                    rows[kind].append(_flat(methods[kind](text, show_progress_bar=False)))
                    continue
                again = model.truncate_dim is not None and type(model[-1]).__name__ == "Normalize"
                vector = np.asarray(
                    methods[kind](text, show_progress_bar=False, normalize_embeddings=again), np.float32
                )
                rows[kind].append(vector if vector.ndim == 1 else None)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                rows[kind].append(None)
    return rows, problem
