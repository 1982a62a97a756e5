"""The engine's executor in this process, without Triton, for the scripts that measure it alone."""

import json
import os
from typing import Any

from tritonembed_perf.machine import describe_machine


def load_executor(model: str, device: str, vllm_json: str) -> tuple[Any, int]:
    """Load it, say on what machine; gives it and the size of the model's vocabulary.

    model: a folder. device: "cpu" or "cuda". vllm_json: vLLM engine arguments.
    """
    from tritonembed_engine.stub import prepare_process

    on_gpu = device == "cuda"
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if on_gpu else None)
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model_files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    files = read_model_files(model)
    vllm = {**({"gpu_memory_utilization": 0.1} if on_gpu else {}), **json.loads(vllm_json)}
    executor = create_executor(ModelSettings(model=model, vllm=vllm), files, device)
    print(f"machine: {describe_machine()}\nexecutor: {executor.name}, {vllm}")
    return executor, files.vocab_size
