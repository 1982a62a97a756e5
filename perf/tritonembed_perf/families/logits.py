"""The logits of a reranker or classifier for the texts of every case, by sentence-transformers or transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_perf.families.texts import KINDS

OTHER = "Which animals watch from the old barn?"
"""The query of every text that is a passage, and the text of every query."""

Logits = npt.NDArray[np.float32]


def pair_of(kind: str, text: str) -> tuple[str, str] | str:
    """What is scored for a text of `texts.KINDS`: (query, text), or the text alone for "plain"."""
    if kind == "plain":
        return text
    return (text, OTHER) if kind == "query" else (OTHER, text)


def logits_of(folder: Path) -> tuple[dict[str, list[Logits | None]], str]:
    """By kind, float32 [labels] for each text; None for one that can't be scored. And the last problem."""
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
