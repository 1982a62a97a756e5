"""The models that one server or one endpoint serves: from `--model`, repeated, or from the file of `--models`.

    models:
      - path: Snowflake/snowflake-arctic-embed-m-v1.5
      - name: bge
        path: ./bge-m3
        replicas: 2
        dtype: float16
        memory: 0.3
        adapters:
          law: ./law-adapter

The first model is `embedding` for Triton, whatever its name. Each further model has its own.

Several entries with one name and weights are versions of one model: `--model bge=./old@90% --model bge=./new@10%`.

`--adapter NAME=BASE:PATH` adds LoRA adapters as models of their own, which share the weights of one that is served.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.files import read_small
from tritonembed_manager.server.repository import task_of
from tritonembed_manager.server.settings import RenderSettings, model_reference
from tritonembed_manager.server.yaml_files import parse_yaml
from tritonembed_protocol.served import FIRST, FIRST_OF_TASK, ServedModel, Task, reason_against_name

OPTION, MODEL, ADAPTER = "--models", "--model", "--adapter"
MOST_MODELS = 32
_WEIGHT = re.compile(r"(.+)@([^@/]*)%")
_ALL = 100.0
MOST_ADAPTERS = 64
_VLLM = ("dtype", "quantization", "max_model_len", "revision")
_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Number = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ModelEntry:
    """A requested model. None and empty fields have the value for all models."""

    path: str
    """A folder, or a name on the hub."""
    name: str | None = None
    """The model's name for clients. None only for the first model."""
    replicas: int | None = None
    gpus: tuple[int, ...] = ()
    memory: float | None = None
    """Share of the memory for a GPU's models; None for an equal share of what the others leave."""
    max_batch_tokens: int | None = None
    task: Task | None = None
    """None: as in its files."""
    vllm: dict[str, Any] = field(default_factory=dict)
    weight: float | None = None
    """The share of the model's requests that this version gets, in percent; None for a model's only version."""
    adapters: tuple[tuple[str, str], ...] = ()
    """Names and places of its LoRA adapters, each a model of its own for clients."""

    @property
    def label(self) -> str:
        """The model in an error."""
        return self.name or FIRST


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: _Text
    name: str | None = None
    replicas: _Number | None = None
    gpus: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, max_length=64)
    memory: float | None = Field(None, gt=0, le=1)
    max_batch_tokens: _Number | None = None
    task: Task | None = None
    weight: float | None = Field(None, gt=0, le=_ALL)
    dtype: _Text | None = None
    quantization: _Text | None = None
    max_model_len: _Number | None = None
    revision: _Text | None = None
    adapters: dict[str, _Text] = Field(default_factory=dict, max_length=MOST_ADAPTERS)

    def entry(self, folder: Path) -> ModelEntry:
        given = {name: value for name in _VLLM if (value := getattr(self, name)) is not None}
        return ModelEntry(
            path=_from(folder, self.path),
            name=self.name,
            replicas=self.replicas,
            gpus=tuple(self.gpus),
            memory=self.memory,
            max_batch_tokens=self.max_batch_tokens,
            task=self.task,
            vllm=given,
            weight=self.weight,
            adapters=tuple((name, _from(folder, path)) for name, path in self.adapters.items()),
        )


def _from(folder: Path, path: str) -> str:
    """A folder is relative to the file. Any other text is a name on the hub."""
    there = folder / Path(path).expanduser()
    return str(there) if there.is_dir() else path


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    models: list[_Entry] = Field(min_length=1, max_length=MOST_MODELS)


def read_models(path: Path) -> list[ModelEntry]:
    """The models of a file. Raises StartError, in one line."""
    try:
        return parse_models_file(read_small(path), path.parent)
    except OSError as error:
        raise StartError(f"{OPTION}: it cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{OPTION}: {error}") from None


def parse_models_file(content: bytes, folder: Path) -> list[ModelEntry]:
    """The models in the content of a file in this folder. Raises ValueError or StartError, in one line."""
    found = parse_yaml(content, _Content)
    return checked([entry.entry(folder) for entry in found.models], OPTION)


def parse_models(given: Sequence[str]) -> list[ModelEntry]:
    """The models of `--model`: PATH, NAME=PATH or NAME=PATH@10%. Raises StartError, in one line."""
    return checked([_parse(one) for one in given], MODEL)


def _parse(given: str) -> ModelEntry:
    name, equals, path = given.partition("=")
    if not equals or "/" in name or Path(given).expanduser().is_dir():
        path, weight = _split_weight(given)
        return ModelEntry(path, weight=weight)
    path, weight = _split_weight(path)
    return ModelEntry(path, name, weight=weight)


def _split_weight(given: str) -> tuple[str, float | None]:
    """A path and its weight, from PATH@10%. Raises StartError."""
    found = _WEIGHT.fullmatch(given)
    if found is None or Path(given).expanduser().is_dir():
        return given, None
    try:
        weight = float(found[2])
    except ValueError:
        weight = -1.0
    if not 0 < weight <= _ALL:
        raise StartError(f"{MODEL}: a weight is a number above 0 and up to 100, such as NAME=PATH@10%")
    return found[1], weight


def refuse_weights(entries: Sequence[ModelEntry], option: str) -> None:
    """Raises StartError if an entry has a weight: a single server has one version of each model."""
    if any(entry.weight is not None for entry in entries):
        raise StartError(f"{option}: weights are for serve, which launches servers for each version")


def checked(entries: Sequence[ModelEntry], option: str) -> list[ModelEntry]:
    """The entries with valid names, which differ except for versions of a model. Raises StartError."""
    if len(entries) > MOST_MODELS:
        raise StartError(f"{option}: at most {MOST_MODELS} models")
    for versions in by_name(entries):
        _check_weights(versions, option)
    seen: set[str] = {FIRST}
    heads = {id(versions[0]) for versions in by_name(entries)}
    for number, entry in enumerate(entries):
        if id(entry) not in heads:
            continue
        if entry.name is None:
            if number:
                raise StartError(f"{option}: model {number + 1} needs a name ({MODEL} NAME=PATH)")
            continue
        if (reason := reason_against_name(entry.name)) is not None:
            raise StartError(f"{option}: {reason}")
        if entry.name in seen and (number or entry.name != FIRST):
            whose = f"{FIRST} is the first model" if entry.name == FIRST else f"two models are called {entry.name}"
            raise StartError(f"{option}: {whose}")
        seen.add(entry.name)
    return list(entries)


def by_name(entries: Sequence[ModelEntry]) -> list[list[ModelEntry]]:
    """The versions of each model, in the order of the models."""
    found: dict[str | int, list[ModelEntry]] = {}
    for number, entry in enumerate(entries):
        found.setdefault(number if entry.name is None else entry.name, []).append(entry)
    return list(found.values())


def _check_weights(versions: Sequence[ModelEntry], option: str) -> None:
    name = versions[0].label
    weights = [version.weight for version in versions]
    given = [weight for weight in weights if weight is not None]
    if not given:
        if len(versions) > 1:
            raise StartError(f"{option}: two models are called {name}")
        return
    if len(given) < len(versions):
        raise StartError(f"{option}: each version of {name} needs a weight")
    if abs(sum(given) - _ALL) > 1e-6:
        raise StartError(f"{option}: the weights of {name} add up to {sum(given):g} %, not to 100 %")
    alike = [replace(version, weight=None) for version in versions]
    if any(version in alike[:number] for number, version in enumerate(alike)):
        raise StartError(f"{option}: two versions of {name} have the same path and settings")


def with_tasks(entries: Sequence[ModelEntry], task: Task | None, *, fetch: bool) -> list[ModelEntry]:
    """The entries with what each model does: as it says itself, as `task` says, or else as its files do.

    fetch: whether the files of a model on the hub are fetched. If they can't be read, it is an embedding model.
    """
    return [
        replace(
            entry, task=entry.task or task or task_of(model_reference(entry.path), entry.vllm.get("revision"), fetch)
        )
        for entry in entries
    ]


def adapters_of(entries: Sequence[ModelEntry]) -> list[ServedModel]:
    """The adapters of all models."""
    pairs = zip(entries, served_as(entries), strict=True)
    return [ServedModel(name, base=served.name) for entry, served in pairs for name, _ in entry.adapters]


def served_as(entries: Sequence[ModelEntry]) -> list[ServedModel]:
    """The servers' names of the models. Raises StartError if two versions of a model have different tasks."""
    served: dict[int, ServedModel] = {}
    for number, versions in enumerate(by_name(entries)):
        tasks: list[Task] = [entry.task or "embed" for entry in versions]
        if len(set(tasks)) > 1:
            raise StartError(f"the versions of {versions[0].label} must all make vectors, or all make scores")
        one = FIRST_OF_TASK[tasks[0]] if number == 0 else ServedModel(versions[0].label, tasks[0])
        served |= {id(entry): one for entry in versions}
    return [served[id(entry)] for entry in entries]


def memory_parts(entries: Sequence[ModelEntry], option: str = OPTION, most: int | None = None) -> list[float]:
    """Each model's share of the memory for models on its GPUs. Raises StartError if there is too little.

    most: models that are in memory at a time; None for all.
    """
    if most is not None and most < len(entries):
        return _parts_of_any(entries, option, most)
    parts = []
    for entry in entries:
        beside = [other for other in entries if _meet(entry, other)]
        given = sum(other.memory for other in beside if other.memory is not None)
        free = [other for other in beside if other.memory is None]
        # A float's sum of ten tenths is just below or above 1.
        if given > 1 + 1e-6 or (free and given > 1 - 1e-6):
            raise StartError(f"{option}: the memory of the models that share a GPU with {entry.label} is over 1")
        parts.append(entry.memory if entry.memory is not None else (1 - given) / len(free))
    return parts


def _parts_of_any(entries: Sequence[ModelEntry], option: str, most: int) -> list[float]:
    """The shares of models of which any `most` may be in memory together."""
    parts = [entry.memory or 1 / most for entry in entries]
    if sum(sorted(parts)[-most:]) > 1 + 1e-6:
        raise StartError(f"{option}: the memory of some {most} models is over 1, and they may be loaded together")
    return parts


def render_settings(
    base: RenderSettings, entries: Sequence[ModelEntry], option: str = OPTION, max_loaded: int | None = None
) -> list[RenderSettings]:
    """The settings of each model. base: those of all models, with any model. Raises StartError."""
    found = []
    for entry, served, part in zip(entries, served_as(entries), memory_parts(entries, option, max_loaded), strict=True):
        if entry.gpus and base.device == "cpu":
            raise StartError(f"{option}: gpus of {entry.label} need --device cuda")
        settings = replace(
            base,
            model=model_reference(entry.path),
            replicas=entry.replicas or base.replicas,
            gpus=entry.gpus or base.gpus,
            max_batch_tokens=entry.max_batch_tokens or base.max_batch_tokens,
            memory_part=part,
            vllm={**base.vllm, **entry.vllm},
            served=served,
            adapters=adapter_references(entry),
        )
        found.append(settings)
    return found


def adapter_references(entry: ModelEntry) -> tuple[tuple[str, str], ...]:
    """Name and place of each adapter: a folder's absolute path, or a name on the hub."""
    pairs = [(name, Path(path).expanduser()) for name, path in entry.adapters]
    return tuple((name, str(path.resolve()) if path.is_dir() else str(path)) for name, path in pairs)


def _meet(one: ModelEntry, other: ModelEntry) -> bool:
    """Whether two models share a GPU. Without `gpus`, a model is on all of them."""
    return not one.gpus or not other.gpus or bool(set(one.gpus) & set(other.gpus))


def with_adapters(entries: Sequence[ModelEntry], given: Sequence[str], *, attached: bool = False) -> list[ModelEntry]:
    """The models with the adapters of `--adapter` added to those of the models file.

    attached: for servers that run already, which have the adapters: then each is NAME=BASE. Raises StartError.
    """
    found = list(entries)
    for one in given:
        name, base, path = _parse_adapter(one, attached=attached)
        places = [number for number, entry in enumerate(found) if base in _names(entry, is_first=number == 0)]
        if not places:
            raise StartError(f"{ADAPTER} {name}: there is no model {base}")
        entry = found[places[0]]
        found[places[0]] = replace(entry, adapters=(*entry.adapters, (name, path)))
    _check_names(found)
    return found


def _parse_adapter(given: str, *, attached: bool) -> tuple[str, str, str]:
    name, equals, rest = given.partition("=")
    base, colon, path = rest.partition(":")
    if attached and not colon and equals and base:
        return name, base, ""
    if attached or not (name and base and path):
        form = "NAME=BASE for servers that run already" if attached else "NAME=BASE:PATH"
        raise StartError(f"{ADAPTER} must be {form}")
    return name, base, path


def _names(entry: ModelEntry, *, is_first: bool) -> tuple[str, ...]:
    """The names by which an adapter can name its base; the first model's are also `embedding` and its path."""
    own = (entry.name,) if entry.name else ()
    return (*own, FIRST, entry.path, Path(entry.path).name) if is_first else own


def _check_names(entries: Sequence[ModelEntry]) -> None:
    """Raise StartError for a bad name, a taken name, or an adapter of a model that scores."""
    taken = {FIRST, *(entry.name for entry in entries if entry.name)}
    for entry in entries:
        for name, path in entry.adapters:
            if (reason := reason_against_name(name)) is not None:
                raise StartError(f"{ADAPTER} {name}: {reason}")
            if name in taken:
                raise StartError(f"{ADAPTER} {name}: another model has this name")
            if entry.task == "score":
                raise StartError(
                    f"{ADAPTER} {name}: {entry.label} is a reranker or classifier, whose adapters are not served"
                )
            if path and _looks_like_a_folder(path) and not Path(path).expanduser().is_dir():
                raise StartError(f"{ADAPTER} {name}: there is no folder {path}")
            taken.add(name)


def _looks_like_a_folder(path: str) -> bool:
    """Names on the hub are `name` or `owner/name`."""
    return path.startswith((".", "~", "/")) or path.count("/") > 1
