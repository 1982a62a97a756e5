"""Why a model could not be loaded, in one line that people can act on, without paths."""

import struct

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from tritonembed_engine.errors import LONGEST, reason_of


class Config(BaseModel):
    """Like vLLM's configurations, it has typed fields and checks of its own."""

    length: int = 1

    @model_validator(mode="after")
    def check(self) -> "Config":
        if self.length > 9:
            raise ValueError("length (10) is greater than 9. To allow it, set A_VARIABLE.")
        return self


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Cannot find any model weights with `/home/me/my models/bert`"), "…weights with `bert`"),
        (RuntimeError("\n  first line\nsecond line"), "first line"),
        (ValueError("Weights not found: {'a.b', 'c.d'}. Please see https://host/page. Bye."), "…found: {'a.b', 'c.d'}"),
        (OSError("no file at /var/lib/x.json"), "OSError: no file at x.json"),
        (OSError("no file at ../x/y.json or file:///z/w.json"), "OSError: no file at y.json or w.json"),
        (KeyError("rope"), "KeyError: 'rope'"),
        (struct.error("unpack requires a buffer of 8 bytes"), "error: unpack requires a buffer of 8 bytes"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("1/2 of 0.5 and/or 3.4"), "1/2 of 0.5 and/or 3.4"),
    ],
)
def test_a_reason_is_the_first_sentence_without_paths(error: Exception, reason: str) -> None:
    found = reason_of(error, "/home/me/my models/bert")
    assert found.endswith(reason.removeprefix("…"))
    assert reason.startswith("…") or found == reason


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (10, "length (10) is greater than 9"),
        ("x", "length: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_only_the_first_of_pydantics_problems_is_reported(length: object, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"length": length})
    assert reason_of(caught.value) == reason


def test_a_long_reason_is_cut() -> None:
    assert len(reason_of(ValueError("x" * 10_000))) == LONGEST


def test_a_name_on_the_hub_keeps_its_organisation():
    assert reason_of(ValueError("org/a-model has no such file"), "org/a-model") == "org/a-model has no such file"
