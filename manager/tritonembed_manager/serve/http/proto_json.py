"""Protocol buffer messages as Triton's HTTP API writes them: the fields' own names, and numbers as numbers.

(protobuf's own `MessageToDict` makes strings of 64-bit numbers.)
"""

from collections.abc import MutableSequence
from typing import Any


def to_json(message: Any, *, unset: bool = False) -> dict[str, Any]:
    """Every field, those with their default value too; unset: also messages that are not set, full of defaults."""
    return {
        field.name: _value(field, getattr(message, field.name), unset)
        for field in message.DESCRIPTOR.fields
        if unset or not field.has_presence or message.HasField(field.name)
    }


def _value(field: Any, value: Any, unset: bool) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _one(of, element, unset) for key, element in sorted(value.items())}
    if isinstance(value, MutableSequence):
        return [_one(field, element, unset) for element in value]
    return _one(field, value, unset)


def _one(field: Any, value: Any, unset: bool) -> Any:
    if field.message_type is not None:
        return to_json(value, unset=unset)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value.decode("latin-1") if isinstance(value, bytes) else value
