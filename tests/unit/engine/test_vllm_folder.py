"""The place of the folder that vLLM loads."""

import numpy as np
from safetensors.numpy import save_file

from tritonembed_engine.model import vllm_folder as module
from tritonembed_manager.server import process as server_process


def test_the_folder_lies_in_the_managers_folder_which_is_cleared_after_a_kill(tmp_path, monkeypatch):
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    model.mkdir()
    scratch.mkdir()
    (model / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    save_file({"weights": np.zeros(1, np.float32)}, model / "model.safetensors")
    monkeypatch.setenv(server_process.SCRATCH_VARIABLE, str(scratch))
    with module.vllm_folder(model) as folder:
        assert folder.parent.parent == scratch
    assert list(scratch.iterdir()) == []
    assert server_process.SCRATCH_VARIABLE == module.SCRATCH_VARIABLE
