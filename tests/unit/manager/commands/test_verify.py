"""`tritonembed-manager verify`: its exit code, from the report of the engine's process."""

import json

import pytest
from tests.models import ModelShelf
from typer.testing import CliRunner

from tritonembed_manager.commands import verify
from tritonembed_manager.commands.app import app


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_depends_on_whether_the_vectors_are_right(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, right: bool, code: int
) -> None:
    monkeypatch.setattr(verify, "_run", lambda *_: {"right": right, "rows": []})
    result = CliRunner().invoke(app, ["verify", str(shelf("bert")), "--device=cpu", "--json"])
    assert (result.exit_code, json.loads(result.output)["right"]) == (code, right)
