"""`modules.json`: what sentence-transformers runs after the transformer, as a pooling and a chain of steps.

Names of files, keys, defaults and refusals are those of sentence-transformers 6.2.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.jina_v3 import JINAS_MODULE, is_jina_v3

_OWN_CODE = "the module {} is the model's own code, which is not run"


class Pooling(str, Enum):
    """sentence-transformers' poolings. A member that lacks its formula is a type error in `pooling.py` and `oracle.py`.

    old_key: the key of a pooling's config.json before `pooling_mode`. vllm: the name in vLLM, if it has this pooling.
    """

    old_key: str
    vllm: str | None

    def __new__(cls, value: str, old_key: str = "", vllm: str | None = None) -> "Pooling":
        member = str.__new__(cls, value)
        member._value_ = value
        member.old_key, member.vllm = old_key, vllm
        return member

    CLS = "cls", "pooling_mode_cls_token", "CLS"
    MAX = "max", "pooling_mode_max_tokens"
    MEAN = "mean", "pooling_mode_mean_tokens", "MEAN"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean", "pooling_mode_weightedmean_tokens"
    LAST_TOKEN = "lasttoken", "pooling_mode_lasttoken", "LAST"


SENTENCE = "sentence_embedding"
"""The feature that Pooling writes; after the last step it is the answer."""

OTHER_FAMILIES = {
    "CrossEncoder": "a reranker (CrossEncoder)",
    "SparseEncoder": "a sparse encoder (SparseEncoder)",
    "MultiVectorEncoder": "a multi-vector model (ColBERT)",
}
"""`model_type` of config_sentence_transformers.json."""

_NAMESPACE = "sentence_transformers."
_PYLATE_DENSE = "pylate.models.Dense.Dense"
"""PyLate's class for sentence-transformers' Dense."""
_SPARSE = ("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding")
_POOLING_KEYS = {
    *("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"),
    *(pooling.old_key for pooling in Pooling),
}
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
    """One module after the pooling.

    source, target: the features that it reads and writes. folder: of its weights, if it has any. width, out_width: the
    length of a vector before and after it. bias, eps: of Dense and LayerNorm. residual: of Dense. activation: of Dense,
    the full name of a class of torch. tensor: if the weights are in the transformer's checkpoint, their name there
    without `.weight`. rows: two rows of that matrix, of which the difference counts.
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
    eps: float = 1e-5
    tensor: str | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class SentenceModules:
    """From token vectors to the sentence's vector.

    transformer: the folder of the transformer's files. pooling: the vectors of several stand side by side; none if the
    model makes the sentence's vector itself.
    include_prompt: whether a prompt's tokens are pooled. normalize: whether the last step normalises; it is not among
    `steps`. dimensions: of the vector. unknown: keys without effect, as "file: key".
    """

    transformer: Path
    pooling: tuple[Pooling, ...]
    include_prompt: bool
    steps: tuple[Step, ...]
    normalize: bool
    dimensions: int
    unknown: tuple[str, ...] = ()


def find_transformer(folder: Path) -> Path:
    """The folder of the transformer's own files: the model's folder, or a folder in it in the oldest layout."""
    listed = read_json(folder / "modules.json")
    if listed is None:
        return folder
    modules = modules_in_order(listed)
    if modules and modules[0][0] in ("Transformer", "MLMTransformer", "CLIPModel"):
        return folder / modules[0][1] if modules[0][1] else folder
    return folder


def read_sentence_modules(folder: Path, hidden_size: int) -> SentenceModules:
    """The modules of a model's folder. Raises ModelError, which names the module, file or key that can't be served.

    hidden_size: of the transformer. For a plain transformers encoder, which has no modules.json, sentence-transformers
    takes the mean and does not normalise.
    """
    listed = read_json(folder / "modules.json")
    if listed is None:
        return SentenceModules(folder, (Pooling.MEAN,), True, (), False, hidden_size)
    if JINAS_MODULE in types_of(listed) and not is_jina_v3(read_object(folder / "config.json")):
        raise ModelError(_OWN_CODE.format(JINAS_MODULE))
    modules = modules_in_order(listed)
    _refuse_other_kinds([name for name, _ in modules])
    path = modules[1][1]
    pooling, include_prompt = _pooling(_config_of(folder, path), path)
    return _with_steps(folder, find_transformer(folder), pooling, include_prompt, modules[2:], hidden_size)


def read_modules_after(folder: Path, width: int) -> SentenceModules:
    """The modules after a first one that makes a sentence's vector itself, without a pooling. width: of this vector.

    Without modules.json there are none. Raises ModelError.
    """
    listed = read_json(folder / "modules.json")
    return _with_steps(folder, folder, (), True, modules_in_order(listed or [])[1:], width)


def _with_steps(
    folder: Path,
    transformer: Path,
    pooling: tuple[Pooling, ...],
    include_prompt: bool,
    modules: list[tuple[str, str]],
    width: int,
) -> SentenceModules:
    """modules: those after the pooling. width: of one pooling's vector."""
    unknown: list[str] = []
    widths = {SENTENCE: max(1, len(pooling)) * width}
    steps: list[Step] = []
    for name, path in modules:
        # Dropout does nothing outside training.
        if name != "Dropout":
            step = _step(name, folder / path, widths, unknown)
            widths[step.target] = step.out_width
            steps.append(step)
    last = Step("Normalize", width=widths[SENTENCE], out_width=widths[SENTENCE])
    normalize = bool(steps) and steps[-1] == last
    return SentenceModules(
        transformer,
        pooling,
        include_prompt,
        tuple(steps[:-1] if normalize else steps),
        normalize,
        widths[SENTENCE],
        tuple(unknown),
    )


def types_of(listed: Any) -> list[str]:
    """The modules' classes, as modules.json names them."""
    return (
        [str(module.get("type")) for module in listed if isinstance(module, dict)] if isinstance(listed, list) else []
    )


def modules_in_order(listed: Any) -> list[tuple[str, str]]:
    """(class name, folder) of every module of modules.json. Releases moved the classes, so only a name's end counts.

    Raises ModelError for a module of another package than sentence-transformers, or a folder outside the model's.
    """
    try:
        modules = [(str(module["type"]), str(module["path"])) for module in listed]
        names = [str(module["name"]) for module in listed]
    except (TypeError, KeyError):
        raise ModelError("the model's modules.json is not a list of modules") from None
    if len(set(names)) < len(names) or any(not name or "." in name for name in names):
        # In sentence-transformers the later module replaces the earlier.
        raise ModelError("the model's modules.json does not give each module a name of its own")
    for kind, path in modules:
        if not kind.startswith(_NAMESPACE) and kind not in (_PYLATE_DENSE, JINAS_MODULE):
            raise ModelError(_OWN_CODE.format(kind[:80]))
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
    """A module's config.json. Raises ModelError if it is missing or empty."""
    config = read_object(folder / path / "config.json")
    if not config:
        problem = "is empty" if (folder / path / "config.json").exists() else "is missing"
        raise ModelError(f"{path}/config.json {problem}, and modules.json names it")
    return config


def _pooling(config: dict[str, Any], path: str) -> tuple[tuple[Pooling, ...], bool]:
    where = f"{path}/config.json"
    for key in config:
        if key not in _POOLING_KEYS:
            raise ModelError(f"{where} has an unknown key: {key[:40]}")
    if "embedding_dimension" not in config and "word_embedding_dimension" not in config:
        raise ModelError(f"{where} has no word_embedding_dimension")
    # The old keys that are true count; without any it is the mean.
    old = [pooling for pooling in Pooling if config.get(pooling.old_key)] or [Pooling.MEAN]
    given = config.get("pooling_mode", old)
    modes: list[Pooling] = []
    for mode in given if isinstance(given, list) else [given]:
        try:
            modes.append(Pooling(mode))
        except ValueError:
            raise ModelError(f"{where}: the pooling {str(mode)[:40]!r} is not one of {', '.join(Pooling)}") from None
    if not modes:
        raise ModelError(f"{where} names no pooling")
    return tuple(modes), bool(config.get("include_prompt", True))


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
    _check_weights(folder)
    if name == "LayerNorm":
        for key in config:
            if key != "dimension":
                raise ModelError(f"{where} has an unknown key: {key[:40]}")
        _check_width(where, "dimension", config.get("dimension"), width)
        return Step("LayerNorm", folder=folder, width=width, out_width=width)
    return _dense(config, folder, source, target, width, unknown)


def dense_step(folder: Path, width: int, unknown: list[str]) -> Step:
    """A Dense module, whatever its input. width: of a vector before it. Raises ModelError."""
    config = _config_of(folder.parent, folder.name)
    _check_weights(folder)
    return _dense(config, folder, SENTENCE, SENTENCE, width, unknown)


def _check_weights(folder: Path) -> None:
    if not any((folder / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        raise ModelError(f"{folder.name} has no weights (model.safetensors or pytorch_model.bin)")


def _dense(config: dict[str, Any], folder: Path, source: str, target: str, width: int, unknown: list[str]) -> Step:
    where = f"{folder.name}/config.json"
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
        raise ModelError(f"{where}: {key} is {value}, but the vector before it has {width} dimensions")


def _activation(where: str, config: dict[str, Any]) -> str:
    """A class of torch; as in sentence-transformers, Tanh if none is named, or one of another library."""
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str):
        raise ModelError(f"{where}: activation_function is not a name")
    return name if name.startswith("torch.") else "torch.nn.modules.activation.Tanh"
