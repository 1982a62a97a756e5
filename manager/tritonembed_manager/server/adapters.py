"""`--adapter NAME=BASE:PATH`: LoRA adapters as models of their own, which share the weights of one that is served."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.models_file import ModelEntry
from tritonembed_protocol.served import FIRST, reason_against_name

OPTION = "--adapter"


def with_adapters(entries: Sequence[ModelEntry], given: Sequence[str], *, attached: bool = False) -> list[ModelEntry]:
    """The models with the adapters of `--adapter` added to those of the models file.

    attached: for servers that run already, which have the adapters: then each is NAME=BASE. Raises StartError.
    """
    found = list(entries)
    for one in given:
        name, base, path = _parse(one, attached=attached)
        places = [number for number, entry in enumerate(found) if base in _names(entry, is_first=number == 0)]
        if not places:
            raise StartError(f"{OPTION} {name}: there is no model {base}")
        entry = found[places[0]]
        found[places[0]] = replace(entry, adapters=(*entry.adapters, (name, path)))
    _check_names(found)
    return found


def _parse(given: str, *, attached: bool) -> tuple[str, str, str]:
    name, equals, rest = given.partition("=")
    base, colon, path = rest.partition(":")
    if attached and not colon and equals and base:
        return name, base, ""
    if attached or not (name and base and path):
        form = "NAME=BASE for servers that run already" if attached else "NAME=BASE:PATH"
        raise StartError(f"{OPTION} must be {form}")
    return name, base, path


def _names(entry: ModelEntry, *, is_first: bool) -> tuple[str, ...]:
    """How an adapter can name its base; the first model by `embedding` and by its path or name on the hub, too."""
    own = (entry.name,) if entry.name else ()
    return (*own, FIRST, entry.path, Path(entry.path).name) if is_first else own


def _check_names(entries: Sequence[ModelEntry]) -> None:
    """Raise StartError for a bad name, one that is taken, or an adapter of a model that scores."""
    taken = {FIRST, *(entry.name for entry in entries if entry.name)}
    for entry in entries:
        for name, path in entry.adapters:
            if (reason := reason_against_name(name)) is not None:
                raise StartError(f"{OPTION} {name}: {reason}")
            if name in taken:
                raise StartError(f"{OPTION} {name}: another model has this name")
            if entry.task == "score":
                raise StartError(
                    f"{OPTION} {name}: {entry.label} is a reranker or classifier, whose adapters are not served"
                )
            if path and _looks_like_a_folder(path) and not Path(path).expanduser().is_dir():
                raise StartError(f"{OPTION} {name}: there is no folder {path}")
            taken.add(name)


def _looks_like_a_folder(path: str) -> bool:
    """Names on the hub are `name` or `owner/name`."""
    return path.startswith((".", "~", "/")) or path.count("/") > 1
