"""Puts our kernels into models that vLLM loaded on this CPU: `python -m tests.integration.installed_kernels FOLDER`.

Prints as JSON which layers are replaced: in the model as it is, with layers whose weights have no 16-bit form (GPTQ,
AWQ), and after a kernel that can't be installed. Nothing is computed, because the kernels need a GPU.
"""

import json
import sys

from tritonembed_engine.stub.process import prepare_process

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import torch

    from tritonembed_engine.executors.loading import load_vllm
    from tritonembed_engine.executors.vllm_internals import open_model
    from tritonembed_engine.kernels import bert
    from tritonembed_engine.kernels.install import install_kernels
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import KernelSettings, ModelSettings

    settings = ModelSettings(model=sys.argv[1], vllm={"dtype": "bfloat16"})
    model = open_model(load_vllm(settings, read_model_files(sys.argv[1]), "cpu"))

    def replaced() -> list[str]:
        """Names of the layer classes whose forward is ours."""
        return sorted({type(module).__name__ for module in model.model.modules() if "forward" in vars(module)})

    def install() -> list[str]:
        with model.config():
            kernels = install_kernels(model.model, torch.bfloat16, KernelSettings())
        found = replaced()
        kernels.remove()
        return found

    found = {"as it is": install()}
    for module in model.model.modules():
        if type(module).__name__ == "QKVParallelLinear":
            del module.weight
    found["without a weight"] = install()

    def refuses(*_: object) -> None:
        raise AttributeError("gone")

    bert.residual_output = refuses  # type: ignore[assignment]
    try:
        install()
    except AttributeError:
        found["after a failure"] = replaced()
    print(json.dumps(found))
    sys.stdout.flush()
