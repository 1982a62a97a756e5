"""Models with one route for queries and another for documents (sentence-transformers' Router).

Models are served if their queries need no forward pass, as in OpenSearch's neural-sparse-encoding-doc models: a
document goes through a masked language model, and a table has a weight for each token of a query
(SparseStaticEmbedding). Files and keys are those of sentence-transformers 6.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.modules import modules_in_order

ROUTER = "Router"
_TABLE = "SparseStaticEmbedding"
_OLD_TABLE = "IDF"
_ROUTES = ("query", "document")
_TOKENIZER_KEYS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")


@dataclass(frozen=True)
class Routes:
    """document: the names and folders of the modules for documents. query: the folder of the queries' table.

    default: the route of a text without an input type, "query" or "document".
    """

    document: Sequence[tuple[str, str]]
    query: str
    default: str


def read_routes(folder: Path) -> Routes | None:
    """The routes of a model's folder; None if it has no Router. Raises ModelError for routes that can't be served."""
    listed = read_json(folder / "modules.json")
    modules = modules_in_order(listed) if listed is not None else []
    if [name for name, _ in modules] != [ROUTER]:
        return None
    root = folder / modules[0][1]
    config = read_object(root / "router_config.json") or read_object(root / "config.json")
    types, structure, parameters = (config.get(key) or {} for key in ("types", "structure", "parameters"))
    try:
        found = {
            route: modules_in_order(
                [{"name": str(place), "path": path, "type": types[path]} for place, path in enumerate(paths)]
            )
            for route, paths in structure.items()
        }
    except (AttributeError, KeyError, TypeError):
        raise ModelError("router_config.json does not name the modules of each route") from None
    if sorted(found) != sorted(_ROUTES) or [name for name, _ in found["query"]] not in ([_TABLE], [_OLD_TABLE]):
        raise ModelError("a Router is served only if its routes are document, and query with SparseStaticEmbedding")
    if parameters.get("route_mappings"):
        raise ModelError("router_config.json: route_mappings can't be followed")
    default = parameters.get("default_route") or next(iter(structure))
    if default not in _ROUTES:
        raise ModelError("router_config.json: the default_route is not one of the routes")
    inside = Path(modules[0][1])
    document = [(name, str(inside / path)) for name, path in found["document"]]
    return Routes(document, str(inside / found["query"][0][1]), default)


def check_tokenizers(query: Path, document: Path) -> None:
    """Raise ModelError if queries have another tokenizer than documents: the server has one for both."""
    ours, theirs = (read_object(place / "tokenizer_config.json") for place in (query, document))
    same = all(ours.get(key) == theirs.get(key) for key in _TOKENIZER_KEYS)
    if not (same and _tokenizer_of(query) == _tokenizer_of(document)):
        raise ModelError(f"the tokenizer of {query.name} differs from that of the documents")


def _tokenizer_of(place: Path) -> object:
    """The part of a tokenizer that makes tokens of a text, without truncation and padding. Raises ModelError."""
    found = read_object(place / "tokenizer.json")
    if found:
        return {key: value for key, value in found.items() if key not in ("truncation", "padding")}
    if not (place / "vocab.txt").is_file():
        raise ModelError(f"{place.name or 'the model'} has neither tokenizer.json nor vocab.txt")
    return (place / "vocab.txt").read_bytes()


def read_weights(query: Path, vocab_size: int) -> npt.NDArray[np.float32]:
    """The weight of each token in a query: float32 [vocabulary]. Raises ModelError.

    query: the table's folder. vocab_size: rows of the documents' embedding table; a shorter table has zeros there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = query / "model.safetensors"
    if not file.is_file():
        raise ModelError(f"{query.name} has no weights (model.safetensors)")
    try:
        table = load_file(file)["weight"].float().numpy()
    except (SafetensorError, KeyError, OSError) as error:
        raise ModelError(f"{query.name}: the weights can't be read ({type(error).__name__})") from None
    if table.ndim != 1 or len(table) > vocab_size:
        raise ModelError(f"{query.name}: the weights have the shape {list(table.shape)}, not [{vocab_size}]")
    weights = np.zeros(vocab_size, np.float32)
    weights[: len(table)] = table
    if not np.isfinite(weights).all():
        raise ModelError(f"{query.name}: a weight is not finite")
    return weights
