"""Static embeddings: a table with one row per token id. A text's vector is the mean of its tokens' rows.

Two layouts: sentence-transformers' module StaticEmbedding, and model2vec's own folder. The vectors are those of
sentence-transformers, which reads both: no special tokens, unknown tokens count, and only tokenizer.json truncates.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.modules import modules_in_order

if TYPE_CHECKING:
    import torch

STATIC = "static"
"""`ModelFiles.model_type` of these models, whose config.json has none or model2vec's."""

TABLES = ("embedding.weight", "embeddings")
"""The table's name in sentence-transformers and in model2vec."""


@dataclass(frozen=True)
class StaticTable:
    """A table as its file's head describes it. rows: one per token id. width: of a row.

    max_length, truncate: the truncation that tokenizer.json itself has, in tokens and "END" or "START"; None: none.
    """

    rows: int
    width: int
    max_length: int | None
    truncate: str


def static_folder(folder: Path) -> Path | None:
    """The folder of a static model's table and tokenizer; None if the model is another one. Raises ModelError."""
    listed = read_json(folder / "modules.json")
    if listed is None:
        return folder if read_object(folder / "config.json").get("model_type") == "model2vec" else None
    modules = modules_in_order(listed)
    return folder / modules[0][1] if modules and modules[0][0] == "StaticEmbedding" else None


def read_table_head(place: Path) -> StaticTable:
    """What the files say without the table itself. place: see `static_folder`. Raises ModelError."""
    shapes = {name: _tensor(place, name, "shape") for name in _names(place)}
    table = next((shapes[name] for name in TABLES if name in shapes), None)
    if table is None:
        raise ModelError(f"model.safetensors has no table of embeddings ({' or '.join(TABLES)})")
    if len(table) != 2 or not all(table):
        raise ModelError(f"the table of embeddings has the shape {table}, not [tokens, dimensions]")
    rows = table[0]
    if TABLES[0] not in shapes:
        for name in ("mapping", "weights"):
            found = shapes.get(name, [rows])
            if len(found) != 1 or (name == "weights" and found != [rows]):
                raise ModelError(f"{name} in model.safetensors has the shape {found}, not [{rows}]")
            rows = found[0]
    truncation = _truncation(place)
    direction = "START" if truncation.get("direction") == "Left" else "END"
    return StaticTable(rows, table[1], truncation.get("max_length"), direction)


def read_table(place: Path) -> "torch.Tensor":
    """The table, float32 [tokens, dimensions], with model2vec's `mapping` and `weights` applied. Raises ModelError."""
    names = _names(place)
    if TABLES[0] in names:
        whole: torch.Tensor = _tensor(place, TABLES[0], "value")
        return whole.float()
    table = _tensor(place, TABLES[1], "value")
    if "mapping" in names:
        mapping = _tensor(place, "mapping", "value").long()
        if mapping.numel() and not 0 <= int(mapping.min()) <= int(mapping.max()) < len(table):
            raise ModelError(f"mapping in model.safetensors names rows outside the table of {len(table)}")
        table = table[mapping]
    found: torch.Tensor = table.float()
    return found * _tensor(place, "weights", "value").float()[:, None] if "weights" in names else found


def _names(place: Path) -> set[str]:
    # Imported here: the manager reads only the heads of files.
    from safetensors import SafetensorError, safe_open

    file = place / "model.safetensors"
    if not file.is_file():
        raise ModelError("the model has no weights (model.safetensors)")
    try:
        with safe_open(file, framework="np") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.safetensors is broken or not complete ({type(error).__name__})") from None


def _tensor(place: Path, name: str, what: Literal["shape", "value"]) -> Any:
    from safetensors import safe_open

    with safe_open(place / "model.safetensors", framework="np" if what == "shape" else "pt") as opened:
        return opened.get_slice(name).get_shape() if what == "shape" else opened.get_tensor(name)


def _truncation(place: Path) -> dict[str, Any]:
    tokenizer = place / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError("the model has no tokenizer (tokenizer.json)")
    try:
        return json.loads(tokenizer.read_text("utf-8")).get("truncation") or {}
    except (ValueError, AttributeError, OSError) as error:
        raise ModelError(f"the model's tokenizer.json can't be read ({type(error).__name__})") from None
