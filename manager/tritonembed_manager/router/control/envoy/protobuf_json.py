"""Envoy's configuration as JSON: objects that carry the name of their protobuf type."""

from typing import Any

Config = dict[str, Any]
"""A protobuf message in its JSON form."""


def typed(type_name: str, /, **fields: Any) -> Config:
    """A message of a type, such as envoy.config.cluster.v3.Cluster, where Envoy accepts any type."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def extension(name: str, type_name: str, /, **fields: Any) -> Config:
    """An extension of Envoy, with its configuration."""
    return {"name": name, "typed_config": typed(type_name, **fields)}


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.3f}s"
