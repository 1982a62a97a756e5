"""The names of the served models, and checks of the model names and versions that clients send.

To Triton, every name of a served model is that of its ensemble, which is `embedding` for the first. `check_name`
applies to every route of every protocol: `http/kserve.py` calls it for HTTP, `request.py` for ModelInfer and
`kserve_calls.py` for gRPC's other calls.

Triton reads names and versions as C strings: `embedding\\0x` as `embedding`, and `1abc` as version 1.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.data.protobuf import field, text_parameter
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.served import FIRST, FIRST_MODEL, ServedModel

OF_TRITON = FIRST_MODEL.triton_models
"""Names of the first model's parts. None of them can be an alias."""
MAX_NAME = 255
"""Bytes of a name. A model is a folder of Triton's repository, so its name is a file name."""
ADAPTER = "adapter"
"""The request's parameter. To clients an adapter is a model of its own, too."""
_MAX_PATH = 4096
"""Bytes. The path of a model is one of its names."""
_NAME = 1
"""The field in ModelInferRequest and in ModelInferResponse."""
_NAME_TAG = b"\x0a"
_PLAIN = field(_NAME, FIRST.encode())
"""First bytes of nearly every request."""


@dataclass
class ServedNames:
    """The names of the first model, and in `more` those of further models. A process has one such object, which changes
    with the models file: see `become`.

    ids: the names in OpenAI's list; the first is in every answer. others: further names that requests may have.
    """

    ids: tuple[str, ...] = (FIRST,)
    others: tuple[str, ...] = ()
    served: ServedModel = FIRST_MODEL
    """Triton's names of the model."""
    more: tuple["ServedNames", ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ServedNames":
        """The reverse of dataclasses.asdict, after JSON."""
        return cls(
            tuple(data["ids"]),
            tuple(data["others"]),
            ServedModel(**data["served"]),
            tuple(map(cls.from_json, data["more"])),
        )

    def become(self, names: "ServedNames") -> None:
        """Take over all names of another object."""
        for each in fields(self):
            setattr(self, each.name, getattr(names, each.name))
        for cached in ("json", "with_vectors", "has_adapters"):
            self.__dict__.pop(cached, None)

    @cached_property
    def json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`."""
        return asdict(self)

    @cached_property
    def with_vectors(self) -> frozenset[bytes]:
        """The Triton models that answer with vectors or scores."""
        return frozenset(name.encode() for each in self.models for name in each.served.with_vectors)

    @property
    def model(self) -> str:
        """The name in every answer."""
        return self.ids[0]

    @property
    def models(self) -> tuple["ServedNames", ...]:
        """The names of each model."""
        return (self, *self.more)

    @property
    def loaded(self) -> tuple["ServedNames", ...]:
        """The names of each model that servers load: all but adapters, which their base models bring along."""
        return tuple(each for each in self.models if not each.served.base)

    @cached_property
    def has_adapters(self) -> bool:
        """Whether there is one."""
        return any(each.served.base for each in self.models)

    def base_of(self, names: "ServedNames") -> "ServedNames":
        """The names of an adapter's base model; for any other model, its own."""
        base = names.served.base
        return next(each for each in self.models if each.served.name == base) if base else names

    def find(self, name: str) -> "ServedNames | None":
        """The names of the model that has this name; None if no model has it."""
        own = (each for each in self.models if name == each.served.name)
        other = (each for each in self.models if name in each.ids or name in each.others)
        return next(own, None) or next(other, None)

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def of_part(self, name: str) -> "ServedNames | None":
        """The names of the model that has this Triton model; None if no model has it."""
        return next((each for each in self.models if name in each.served.triton_models), None)

    def of_ensemble(self, name: str) -> str:
        """The name in answers of the model with this ensemble; the same name if there is no such model."""
        return next((each.model for each in self.models if each.served.name == name), name)

    def to_model(self, name: str) -> str:
        """Triton's name of a model or of a part of it (`NAME_embedder`); any other name unchanged."""
        if self.of_part(name) is not None:
            return name
        for each in self.models:
            for alias in (*each.ids, *each.others):
                if name.startswith(alias) and (found := each.served.of_alias(alias, name)) is not None:
                    return found
        return name

    async def infer(self, request: bytes, infer: Callable[[bytes], Awaitable[bytes]]) -> bytes:
        """Send an encoded ModelInferRequest with `infer`; the answer repeats the name that the request has.

        Only the first field is read: every client puts the name there. If a request's parameter names an adapter of its
        model, the request is for that adapter.
        """
        if request.startswith(_PLAIN) and not self.has_adapters:
            return await infer(request)
        name, end = front(request)
        model = self.to_model(name) if name else name
        if self.has_adapters:
            model = self._of_adapter(model, text_parameter(request, ADAPTER))
        if model == name:
            return await infer(request)
        answer = await infer(field(_NAME, model.encode()) + request[end:])
        answered, end = front(answer)
        return field(_NAME, name.encode()) + answer[end:] if answered == model else answer

    def _of_adapter(self, model: str, adapter: str) -> str:
        """The Triton model of an adapter that stands for `model`; `model` itself if it has no such adapter."""
        base = self.of_part(model) if adapter else None
        if base is not None:
            for each in self.models:
                if each.served.base == base.served.name and each.served.name == adapter:
                    return each.served.of_part(model, base.served)
        return model


def name_as_asked(answer: Any, alias: str) -> None:
    """Write the alias into a ModelMetadata-, ModelConfig- or ModelStatisticsResponse about one model."""
    for part in (answer, getattr(answer, "config", None), *getattr(answer, "model_stats", ())):
        if getattr(part, "name", None):
            part.name = alias


def served_names(model: str, given: Sequence[str]) -> ServedNames:
    """model: --model, or its substitute. given: --served-model-name; if there are any, they are the only names.

    The last part of a name on the hub is a name, too. The name of a folder is the last part of its path; the path is a
    valid name too, as written and in full.
    Raises StartError.
    """
    for name in given:
        if not name or not name.isprintable() or len(name.encode()) > MAX_NAME:
            raise StartError(f"--served-model-name: a name has 1 to {MAX_NAME} bytes, all of them printable")
        if name in OF_TRITON and name != FIRST:
            raise StartError(f"--served-model-name: {name} is the name of one of Triton's own models")
    if given:
        return ServedNames(tuple(dict.fromkeys(given)))
    folder = Path(model).expanduser()
    if not folder.is_dir():
        # Some clients send the last part of a hub's name only.
        last = model.rpartition("/")[2]
        return ServedNames((model,), (last,) if last not in ("", model, *OF_TRITON) else ())
    full = folder.resolve()
    return ServedNames((full.name or model,), (model, str(full)))


def front(message: bytes) -> tuple[str, int]:
    """The model's name if it is the first field (else empty), and the index at which that field ends."""
    if message[:1] != _NAME_TAG or len(message) < 3:
        return "", 0
    # A length of two bytes is enough for every name.
    size, at = message[1], 2
    if size & 0x80:
        size, at = size & 0x7F | message[2] << 7, 3
    end = at + size
    try:
        return (message[at:end].decode(), end) if size <= _MAX_PATH and end <= len(message) else ("", 0)
    except UnicodeDecodeError:
        return "", 0


_MAX_VERSION = 2**63 - 1


def check_name(name: str, version: str = "") -> None:
    """Raises DispatchError (INVALID_ARGUMENT) if no server may receive this name. version: empty for none."""
    reason = _wrong_name(name) or _wrong_version(version)
    if reason:
        # The error does not repeat the name, which may hold anything.
        raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, reason)


def _wrong_name(name: str) -> str:
    if not name:
        return "the model's name is empty"
    if not name[: MAX_NAME + 1].isprintable():
        return "the model's name has a character that can't be printed"
    if len(name) > MAX_NAME or len(name.encode()) > MAX_NAME:
        return f"the model's name has more than {MAX_NAME} bytes"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "the model's name is a path: it must be the name of one folder"
    return ""


def _wrong_version(version: str) -> str:
    if version and not (
        version.isascii() and version.isdigit() and len(version) <= MAX_NAME and int(version) <= _MAX_VERSION
    ):
        return "the model's version must be a whole number"
    return ""
