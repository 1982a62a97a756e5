"""The demo's model, which later runs take as they find it."""

from pathlib import Path

import pytest
from demo import model


def test_a_demo_model_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo-model"
    with monkeypatch.context() as patch:
        patch.setattr(model, "save_file", lambda *_, **__: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            model.main(folder)
    assert not folder.exists()
    model.main(folder)
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo-model"]
