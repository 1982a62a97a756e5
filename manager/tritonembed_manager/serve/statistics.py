"""ModelStatistics of many servers as if they were one: what is counted is added up."""

from collections.abc import Iterable
from typing import Any

from tritonclient.grpc import service_pb2

_LATEST = "last_inference"
"""A time, not a count."""
_KEYS = {"model_stats": ("name", "version"), "batch_stats": ("batch_size",), "memory_usage": ("type", "id")}
"""What tells the elements of a list apart."""


def add_up(answers: Iterable[bytes]) -> bytes:
    """Encoded ModelStatisticsResponses as one."""
    total = service_pb2.ModelStatisticsResponse()
    for answer in answers:
        _add(total, service_pb2.ModelStatisticsResponse.FromString(answer))
    encoded: bytes = total.SerializeToString()
    return encoded


def _add(total: Any, more: Any, keep: tuple[str, ...] = ()) -> None:
    for descriptor, value in more.ListFields():
        name = descriptor.name
        if name in keep or isinstance(value, str):
            setattr(total, name, value)
        elif name in _KEYS:
            _add_list(getattr(total, name), value, _KEYS[name])
        elif isinstance(value, int):
            ours = getattr(total, name)
            setattr(total, name, max(ours, value) if name == _LATEST else ours + value)
        elif hasattr(value, "items"):
            for key, element in value.items():
                _add(getattr(total, name)[key], element)
        else:
            _add(getattr(total, name), value)


def _add_list(total: Any, more: Any, keys: tuple[str, ...]) -> None:
    known = {tuple(getattr(element, key) for key in keys): element for element in total}
    for element in more:
        same = known.get(tuple(getattr(element, key) for key in keys))
        _add(total.add() if same is None else same, element, keys)
