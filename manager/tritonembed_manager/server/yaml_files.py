"""Reads YAML that people write, such as the list of tenants. Errors are one line, which never holds a value."""

import re
from collections.abc import Hashable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

_DEEPEST = 8
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is missing",
    "model_type": "it must have fields",
}
"""Our texts for some errors of pydantic, by their types."""
_Kind = TypeVar("_Kind", bound=BaseModel)


def parse_yaml(content: bytes, kind: type[_Kind]) -> _Kind:
    """The content of a file as a `kind`. Raises ValueError, in one line that names the place."""
    try:
        return kind.model_validate(_load(content))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        message = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{_place(first['loc'])}{message}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """Such as `tenants[2].keys[0].sha256: `; an unknown field is shown, if it may be a field at all."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part if re.fullmatch('[a-z0-9_]{1,32}', part) else '…'}"
    return f"{text.lstrip('.')}: " if text else "the file: "


class _Unique(_Loader):  # type: ignore[misc]
    """A loader that refuses a key which occurs twice in a mapping; YAML's own would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        if len({repr(name) for name in names}) < len(names):
            raise _Wrong("a field occurs twice", node.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


class _Wrong(yaml.MarkedYAMLError):  # type: ignore[misc]
    def __init__(self, what: str, mark: yaml.Mark) -> None:
        super().__init__(problem_mark=mark)
        self.what = what


def _load(content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            # Nine lines of aliases can stand for a billion strings. These files need none.
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _Wrong("anchors and aliases (& and *) are not allowed", event.start_mark)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise _Wrong("it is nested too deeply", event.start_mark)
        return yaml.load(text, Loader=_Unique)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Their texts hold parts of the file.
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{at}{error.what if isinstance(error, _Wrong) else 'it is not valid YAML'}") from None
