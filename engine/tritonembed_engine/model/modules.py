"""`modules.json`: what follows the transformer, as sentence-transformers would run it and vLLM can."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object

POOLINGS = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
"""sentence-transformers' pooling modes that vLLM has, under vLLM's names."""

_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceModules:
    """From token vectors to the sentence's vector."""

    pooling: str
    """"CLS", "MEAN" or "LAST"."""

    dimensions: int | None
    """What the last Dense module gives; None: the transformer's hidden size."""

    normalize: bool


def read_sentence_modules(folder: Path) -> SentenceModules:
    """The modules of a model's folder. Raises ModelError for what vLLM can't serve.

    A plain transformers encoder has no modules.json: sentence-transformers takes the mean, and does not normalise.
    """
    listed = read_json(folder / "modules.json")
    if listed is None:
        return SentenceModules(pooling="MEAN", dimensions=None, normalize=False)
    modules = _in_order(listed)
    names = [name for name, _ in modules]
    if names[:2] != ["Transformer", "Pooling"] or "Normalize" in names[2:-1]:
        raise ModelError(f"the modules {', '.join(names) or 'none'} can't be served: Transformer, Pooling, … Normalize")
    pooling, dimensions = "", None
    for name, path in modules[1:]:
        if name == "Pooling":
            pooling = _pooling(read_object(folder / path / "config.json"))
        elif name == "Dense":
            dimensions = read_object(folder / path / "config.json").get("out_features")
        # Dropout does nothing outside training.
        elif name not in ("Normalize", "Dropout"):
            raise ModelError(f"a {name} module can't be served")
    return SentenceModules(pooling, dimensions, normalize=names[-1] == "Normalize")


def _in_order(listed: Any) -> list[tuple[str, str]]:
    """(class name, folder) of every module. Newer releases moved the classes: only the last name component counts."""
    try:
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (TypeError, KeyError):
        raise ModelError("the model's modules.json is not a list of modules") from None


def _pooling(config: dict[str, Any]) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) > 1:
        raise ModelError(f"the poolings {' and '.join(map(str, modes))} side by side can't be served")
    if not modes or modes[0] not in POOLINGS:
        raise ModelError(f"the pooling {modes} can't be served; served are {', '.join(POOLINGS)}")
    if not config.get("include_prompt", True):
        raise ModelError("a pooling that leaves out the prompt (include_prompt=false) can't be served")
    return POOLINGS[modes[0]]
