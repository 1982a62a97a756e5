"""Requests of the model `tokenizer` that ask for tokens or for the text of ids: their outputs and parameters."""

import json
from dataclasses import dataclass

from tritonembed_engine.errors import InvalidArgument

TOKENS, DECODED = "tokens", "decoded"
"""Outputs of the model `tokenizer`. A request asks for one of them, and for nothing else."""
_BOOLS = ("add_special_tokens", "skip_special_tokens")


@dataclass(frozen=True)
class InspectParameters:
    """add_special_tokens: of `tokens`. skip_special_tokens: of `decoded`. prompt_name: None for the default."""

    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    prompt_name: str | None = None


def parse_inspect_parameters(raw: str) -> InspectParameters:
    """raw: as for parse_parameters. Raises InvalidArgument, which names the parameter."""
    given = {name: value for name, value in json.loads(raw or "{}").items() if not name.startswith("triton_")}
    for name, value in given.items():
        if name not in InspectParameters.__dataclass_fields__:
            known = ", ".join(InspectParameters.__dataclass_fields__)
            raise InvalidArgument("parameters", f"there is an unknown one; known are {known}")
        if name in _BOOLS and not isinstance(value, bool):
            raise InvalidArgument(name, "must be a bool")
        if name not in _BOOLS and not isinstance(value, str):
            raise InvalidArgument(name, "must be a string")
    return InspectParameters(**given)
