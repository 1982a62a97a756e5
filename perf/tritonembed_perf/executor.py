"""The engine's executor in this process, without Triton, for the scripts that measure it alone."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from tritonembed_perf.machine import describe_machine

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model_files import ModelFiles


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What every such script is given: the model, and how vLLM loads it."""
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--vllm", type=_arguments, default={}, help="vLLM engine arguments as JSON")


def load_executor(
    model: str, device: str, vllm: dict[str, Any], executor: str = "auto"
) -> tuple["Executor", "ModelFiles"]:
    """Load it, say on what machine; gives it and what the model's files say.

    model: a folder. device: "cpu" or "cuda". vllm: vLLM engine arguments. executor: as in model.json. Ends the script
    with one line where there is no GPU or the model can't be loaded.
    """
    from tritonembed_engine.stub import prepare_process

    on_gpu = device == "cuda"
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if on_gpu else None)
    import torch

    from tritonembed_engine.errors import ModelError
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model_files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    if on_gpu and not torch.cuda.is_available():
        sys.exit("error: there is no GPU")
    vllm = {**({"gpu_memory_utilization": 0.1} if on_gpu else {}), **vllm}
    settings = ModelSettings.model_validate({"model": model, "vllm": vllm, "engine": {"executor": executor}})
    try:
        files = read_model_files(model)
        loaded = create_executor(settings, files, device)
    except ModelError as error:
        sys.exit(f"error: {error}")
    print(f"machine: {describe_machine()}\nexecutor: {loaded.name}, {vllm}")
    return loaded, files


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return arguments
