"""What sentence-transformers adds to a model: modules.json, the folders of its modules, and its settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_perf.families.writing import ModelParts, write_json, write_weights

OLD = "sentence_transformers.models."
"""Package of the module classes until sentence-transformers 5. Most of the hub's models name it."""

MAX_LENGTH = 64
"""Tokens of a text, in most cases."""

_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def _no_files(folder: Path) -> None:
    """For a module without files. sentence-transformers still needs its folder."""
    folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Module:
    """One entry of modules.json."""

    kind: str
    """The end of the name of its folder, such as "Pooling"; "" for the transformer, which is in the model's folder."""

    type: str
    """The class, as modules.json names it."""

    write: Callable[[Path], None] = _no_files
    """Writes the module's files into its folder."""


def transformer(type: str = f"{OLD}Transformer", kind: str = "") -> Module:
    """The transformer, which is the first module."""
    return Module(kind, type)


def pooling(width: int, *modes: str, **more: Any) -> Module:
    """A pooling with one mode or several. more: further keys of its configuration."""
    config = {"word_embedding_dimension": width, **{key: mode in modes for mode, key in _POOLING_KEYS.items()}, **more}
    return Module("Pooling", f"{OLD}Pooling", lambda folder: write_json(folder / "config.json", config))


def normalize() -> Module:
    """Normalize: vectors of length 1."""
    return Module("Normalize", f"{OLD}Normalize")


def dense(
    inputs: int,
    outputs: int,
    activation: str | None = "torch.nn.modules.activation.Tanh",
    *,
    type: str = f"{OLD}Dense",
    bias: bool = True,
    form: str = "safetensors",
    seed: int = 100,
    **more: Any,
) -> Module:
    """A linear layer. activation: None leaves out the key. form: of the weights' file. more: further keys."""
    keys = {} if activation is None else {"activation_function": activation}
    config = {"in_features": inputs, "out_features": outputs, "bias": bias, **keys, **more}
    return Module("Dense", type, partial(_write_dense, config=config, form=form, seed=seed))


def _write_dense(folder: Path, config: dict[str, Any], form: str, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = config["in_features"], config["out_features"]
    state = {"linear.weight": torch.randn(outputs, inputs, generator=generator) * 2 / inputs**0.5}
    if config["bias"]:
        state["linear.bias"] = torch.randn(outputs, generator=generator) * 0.5
    if config.get("use_residual") and inputs != outputs:
        state["residual.weight"] = torch.randn(outputs, inputs, generator=generator) * 2 / inputs**0.5
    write_json(folder / "config.json", config)
    write_weights(folder, state, form)


def write_model(folder: Path, model: ModelParts, mode: str = "mean", *after: Module, **sentence: Any) -> None:
    """Write the most common folder: transformer, pooling, `after`, Normalize. sentence: for `write_sentence_files`."""
    model.write(folder)
    write_sentence_files(folder, [transformer(), pooling(model.width, mode), *after, normalize()], **sentence)


def write_sentence_files(
    folder: Path,
    modules: Sequence[Module],
    *,
    max_length: int | None = MAX_LENGTH,
    settings: Mapping[str, Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write sentence-transformers' files for a model that is already in the folder.

    max_length: `max_seq_length`; None leaves out sentence_bert_config.json unless there are settings. settings: its
    other keys. config: further keys of config_sentence_transformers.json.
    """
    listed = []
    for index, module in enumerate(modules):
        path = f"{index}_{module.kind}" if module.kind else ""
        listed.append({"idx": index, "name": str(index), "path": path, "type": module.type})
        module.write(folder / path)
    write_json(folder / "modules.json", listed)
    length = {} if max_length is None else {"max_seq_length": max_length, "do_lower_case": False}
    if length or settings:
        write_json(folder / "sentence_bert_config.json", {**length, **(settings or {})})
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.30.2", "pytorch": "2.0.1"}
    given = {"prompts": dict(prompts)} if prompts else {}
    write_json(folder / "config_sentence_transformers.json", {"__version__": versions, **given, **(config or {})})
