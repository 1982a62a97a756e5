"""`modules.json`: what sentence-transformers runs after the transformer, as a pooling and a chain of steps.

Held against sentence-transformers 6.2: the files' names, keys and defaults, and what it refuses, are its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
"""sentence-transformers' poolings; several stand side by side in the order of the file."""

SENTENCE = "sentence_embedding"
"""The feature that Pooling writes and that is the answer."""

OTHER_FAMILIES = {
    "CrossEncoder": "a reranker (CrossEncoder)",
    "SparseEncoder": "a sparse encoder (SparseEncoder)",
    "MultiVectorEncoder": "a multi-vector model (ColBERT)",
}
"""`model_type` of config_sentence_transformers.json."""

_NAMESPACE = "sentence_transformers."
_SPARSE = ("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding")
_OLD_POOLING_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
_DENSE_KEYS = {
    "in_features",
    "out_features",
    "bias",
    "activation_function",
    "module_input_name",
    "module_output_name",
    "use_residual",
}


@dataclass(frozen=True)
class Step:
    """One module after the pooling. kind: "Dense", "LayerNorm" or "Normalize".

    source, target: the features that it reads and writes. folder: where its weights are, if it has any.
    width, out_width: the length of a vector before and after it. bias, residual: of Dense. activation: of Dense, a
    class of torch by its full name.
    """

    kind: Literal["Dense", "LayerNorm", "Normalize"]
    source: str = SENTENCE
    target: str = SENTENCE
    folder: Path | None = None
    width: int = 0
    out_width: int = 0
    bias: bool = True
    residual: bool = False
    activation: str = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class SentenceModules:
    """From token vectors to the sentence's vector.

    transformer: the folder of the transformer's files. pooling: modes whose vectors stand side by side. include_prompt:
    whether a prompt's tokens are pooled. normalize: whether the last step, which is not among `steps`, normalises.
    dimensions: of the vector. unknown: keys that have no effect, as "file: key".
    """

    transformer: Path
    pooling: tuple[PoolingMode, ...]
    include_prompt: bool
    steps: tuple[Step, ...]
    normalize: bool
    dimensions: int
    unknown: tuple[str, ...] = ()


def find_transformer(folder: Path) -> Path:
    """The folder of the transformer's own files: the model's folder, or, in the oldest layout, one inside it."""
    listed = read_json(folder / "modules.json")
    if listed is None:
        return folder
    modules = _in_order(listed)
    if modules and modules[0][0] == "Transformer":
        return folder / modules[0][1] if modules[0][1] else folder
    return folder


def read_sentence_modules(folder: Path, hidden_size: int) -> SentenceModules:
    """The modules of a model's folder. Raises ModelError, naming the module, file or key, for what can't be served.

    hidden_size: of the transformer. A plain transformers encoder has no modules.json: sentence-transformers takes the
    mean, and does not normalise.
    """
    listed = read_json(folder / "modules.json")
    if listed is None:
        return SentenceModules(folder, ("mean",), True, (), False, hidden_size)
    modules = _in_order(listed)
    names = [name for name, _ in modules]
    _refuse_other_kinds(names)
    unknown: list[str] = []
    path = modules[1][1]
    pooling, include_prompt = _pooling(_config_of(folder, path), path)
    widths = {SENTENCE: len(pooling) * hidden_size}
    steps: list[Step] = []
    for name, path in modules[2:]:
        # Dropout does nothing outside training.
        if name != "Dropout":
            step = _step(name, folder / path, widths, unknown)
            widths[step.target] = step.out_width
            steps.append(step)
    last = Step("Normalize", width=widths[SENTENCE], out_width=widths[SENTENCE])
    normalize = bool(steps) and steps[-1] == last
    transformer = find_transformer(folder)
    return SentenceModules(
        transformer,
        pooling,
        include_prompt,
        tuple(steps[:-1] if normalize else steps),
        normalize,
        widths[SENTENCE],
        tuple(unknown),
    )


def _in_order(listed: Any) -> list[tuple[str, str]]:
    """(class name, folder) of every module. Releases moved the classes: only the last name component counts."""
    try:
        modules = [(str(module["type"]), str(module["path"])) for module in listed]
        names = [str(module["name"]) for module in listed]
    except (TypeError, KeyError):
        raise ModelError("the model's modules.json is not a list of modules") from None
    if len(set(names)) < len(names) or any(not name or "." in name for name in names):
        # In sentence-transformers the later module takes the place of the earlier.
        raise ModelError("the model's modules.json does not give each module a name of its own")
    for kind, path in modules:
        if not kind.startswith(_NAMESPACE):
            raise ModelError(f"the module {kind[:80]} is code of the model's own, which is not run")
        if path.startswith("/") or ".." in Path(path).parts:
            raise ModelError("the model's modules.json names a folder outside the model's")
    return [(kind.rpartition(".")[2], path) for kind, path in modules]


def _refuse_other_kinds(names: list[str]) -> None:
    shown = ", ".join(names) or "none"
    if any(name in _SPARSE for name in names):
        raise ModelError(f"it is a sparse encoder (SPLADE), not a dense one: the modules {shown} can't be served")
    if any("MultiVector" in name for name in names) or names[:2] == ["Transformer", "Dense"]:
        raise ModelError(f"it is a multi-vector model (ColBERT): the modules {shown} can't be served")
    if any(name in ("LogitScore", "CrossEncoderHead") for name in names):
        raise ModelError(f"it is a reranker (CrossEncoder): the modules {shown} can't be served")
    if names[:2] != ["Transformer", "Pooling"]:
        raise ModelError(f"the modules {shown} can't be served: they have to begin with Transformer, Pooling")


def _config_of(folder: Path, path: str) -> dict[str, Any]:
    """A module's config.json, which has to be there."""
    config = read_object(folder / path / "config.json")
    if not config:
        problem = "is empty" if (folder / path / "config.json").exists() else "is missing"
        raise ModelError(f"{path}/config.json {problem}, and modules.json names it")
    return config


def _pooling(config: dict[str, Any], path: str) -> tuple[tuple[PoolingMode, ...], bool]:
    where = f"{path}/config.json"
    for key in config:
        if key not in _POOLING_KEYS and key not in _OLD_POOLING_KEYS:
            raise ModelError(f"{where} has an unknown key: {key[:40]}")
    if "embedding_dimension" not in config and "word_embedding_dimension" not in config:
        raise ModelError(f"{where} has no word_embedding_dimension")
    # Of the old keys those that are true count; none means the mean.
    given = config.get("pooling_mode", [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)] or ["mean"])
    modes = given if isinstance(given, list) else [given]
    for mode in modes:
        if mode not in POOLING_MODES:
            raise ModelError(f"{where}: the pooling {str(mode)[:40]!r} is not one of {', '.join(POOLING_MODES)}")
    if not modes:
        raise ModelError(f"{where} names no pooling")
    return tuple(cast("list[PoolingMode]", modes)), bool(config.get("include_prompt", True))


def _step(name: str, folder: Path, widths: dict[str, int], unknown: list[str]) -> Step:
    config = read_object(folder / "config.json")
    where = f"{folder.name}/config.json"
    if name not in ("Dense", "LayerNorm", "Normalize"):
        raise ModelError(f"a {name} module can't be served")
    source = config.get("module_input_name", SENTENCE)
    target = config.get("module_output_name")
    target = source if target is None else target
    if name == "LayerNorm":
        source = target = SENTENCE
    for feature in (source, target):
        if not isinstance(feature, str):
            raise ModelError(f"{where}: module_input_name and module_output_name are not names")
        if feature in ("token_embeddings", "input_ids", "attention_mask"):
            raise ModelError(f"{where}: a {name} module on {feature} can't be served")
    if source not in widths:
        raise ModelError(f"{where}: no module writes its input {str(source)[:40]!r}")
    width = widths[source]
    if name == "Normalize":
        unknown.extend(f"{where}: {key}" for key in config if key not in ("module_input_name", "module_output_name"))
        return Step("Normalize", source, target, width=width, out_width=width)
    config = _config_of(folder.parent, folder.name)
    if not any((folder / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        raise ModelError(f"{folder.name} has no weights (model.safetensors or pytorch_model.bin)")
    if name == "LayerNorm":
        for key in config:
            if key != "dimension":
                raise ModelError(f"{where} has an unknown key: {key[:40]}")
        _check_width(where, "dimension", config.get("dimension"), width)
        return Step("LayerNorm", folder=folder, width=width, out_width=width)
    unknown.extend(f"{where}: {key}" for key in config if key not in _DENSE_KEYS)
    _check_width(where, "in_features", config.get("in_features"), width)
    out_width = config.get("out_features")
    if not isinstance(out_width, int) or out_width < 1:
        raise ModelError(f"{where} has no out_features")
    return Step(
        "Dense",
        source,
        target,
        folder,
        width,
        out_width,
        bias=bool(config.get("bias", True)),
        residual=bool(config.get("use_residual", False)),
        activation=_activation(where, config),
    )


def _check_width(where: str, key: str, value: Any, width: int) -> None:
    if value != width:
        raise ModelError(f"{where}: {key} is {value}, and the vector before it has {width} dimensions")


def _activation(where: str, config: dict[str, Any]) -> str:
    """A class under torch; sentence-transformers takes Tanh where none is named, or one from elsewhere."""
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str):
        raise ModelError(f"{where}: activation_function is not a name")
    return name if name.startswith("torch.") else "torch.nn.modules.activation.Tanh"
