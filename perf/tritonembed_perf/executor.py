"""The engine's executor in this process, without Triton, for the scripts that measure it alone."""

import json
import os
from typing import TYPE_CHECKING

from tritonembed_perf.machine import describe_machine

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model_files import ModelFiles


def load_executor(model: str, device: str, vllm_json: str, executor: str = "auto") -> tuple["Executor", "ModelFiles"]:
    """Load it, say on what machine; gives it and what the model's files say.

    model: a folder. device: "cpu" or "cuda". vllm_json: vLLM engine arguments. executor: as in model.json.
    """
    from tritonembed_engine.stub import prepare_process

    on_gpu = device == "cuda"
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if on_gpu else None)
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model_files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    files = read_model_files(model)
    vllm = {**({"gpu_memory_utilization": 0.1} if on_gpu else {}), **json.loads(vllm_json)}
    settings = ModelSettings.model_validate({"model": model, "vllm": vllm, "engine": {"executor": executor}})
    loaded = create_executor(settings, files, device)
    print(f"machine: {describe_machine()}\nexecutor: {loaded.name}, {vllm}")
    return loaded, files
