"""The results as a Markdown table and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tritonembed_perf.families.verdicts import Row, Verdict

COMMAND = "python -m tritonembed_perf.families --out docs"

_HEAD = f"""\
# Models

Which model folders the engine serves, and whether the vectors are right. `{COMMAND}` makes this page on any CPU: no
model hub, no GPU. Every case is a folder in the layout of the hub's models, with small random weights.

* **Result.** `right`: each vector has a cosine of at least 0.9999 to sentence-transformers' own float32 vector, and the
  same norm. `refused`: the engine does not load the model, and the message says why. `no reference`:
  sentence-transformers does not load it either. `WRONG`: a vector differs, or the engine serves what
  sentence-transformers refuses. SPLADE's weights and the vectors of a ColBERT model's tokens are compared as one
  vector per text; a reranker's logits, as vectors of one number per label, with those of its `CrossEncoder` or, for
  Qwen3-Reranker, of the code on its card.
* **Cosine.** The least over about 40 texts, from empty to far over the maximum, and over queries and passages.
* **Executor.** What served: `direct` runs a whole batch in one forward pass, `scheduler` is vLLM's own,
  `transformers` is Hugging Face's model for families that vLLM lacks.
* **Arguments.** vLLM engine arguments that the case needs.

"""


def summary(rows: Sequence[Row]) -> str:
    """The number of cases per result, in one line."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]) or "no cases"


def markdown(rows: Sequence[Row]) -> str:
    """The page: a head that explains the columns, and one table per family."""
    parts = [_HEAD, f"{len(rows)} cases: {summary(rows)}.\n"]
    for family in dict.fromkeys(row.family for row in rows):
        parts.append(
            f"\n## {family}\n\n| case | result | cosine | executor | message | arguments |\n|---|---|---|---|---|---|\n"
        )
        parts += [_line(row) for row in rows if row.family == family]
    return "".join(parts)


def write_results(rows: Sequence[Row], folder: Path) -> None:
    """Write models.md and models.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "models.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def cosine_text(row: Row) -> str:
    """The least cosine, cut instead of rounded: 0.99996 must not become 1."""
    return "" if row.cosine is None or row.cosine != row.cosine else f"{int(row.cosine * 1e5) / 1e5:.5f}"


def _line(row: Row) -> str:
    result = f"**{row.verdict.value}**" if row.verdict is Verdict.WRONG else row.verdict.value
    arguments = f"`{json.dumps(row.arguments)}`" if row.arguments else ""
    cells = [f"`{row.name}`", result, cosine_text(row), row.executor, row.detail.replace("|", "\\|"), arguments]
    return f"| {' | '.join(cells)} |\n"
