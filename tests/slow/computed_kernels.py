"""Computes with our kernels, not vLLM's, in Triton's interpreter: `python -m tests.slow.computed_kernels FOLDER`.

The weights are float32, because the interpreter can't multiply bfloat16. Prints as JSON the classes of the layers that
were replaced, and per batch the largest difference to the hidden states of vLLM's own layers, as a share of the largest
value.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from tritonembed_engine.stub.process import prepare_process

BATCHES = ([3, 50, 64, 1, 20], [200, 7, 129, 2])
"""Tokens of the sentences: one tile of attention, and several."""

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import numpy as np
    import torch

    from tritonembed_engine.executors.direct import forward
    from tritonembed_engine.executors.flat_batch import FlatBatch, flatten
    from tritonembed_engine.executors.loading import load_vllm
    from tritonembed_engine.executors.vllm_internals import open_model
    from tritonembed_engine.kernels.install import install_kernels
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import KernelSettings, ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    settings = ModelSettings(model=sys.argv[1], vllm={"dtype": "float32"})
    model = open_model(load_vllm(settings, read_model_files(sys.argv[1]), "cpu"))

    @torch.inference_mode()
    def hidden_states(batch: FlatBatch) -> torch.Tensor:
        ids, positions, cu_seqlens, lengths, places = map(
            torch.from_numpy, (batch.ids.copy(), batch.positions, batch.cu_seqlens, batch.lengths, batch.places)
        )
        return forward(model, ids, positions, cu_seqlens, cu_seqlens, lengths, batch.longest, places).clone()

    rng = np.random.default_rng(0)
    differences, replaced = [], []
    for lengths in BATCHES:
        ids = rng.integers(5, 100, sum(lengths)).astype(np.int32)
        batch = flatten(TokenIds(ids, np.array(lengths, np.int32)), None)
        expected = hidden_states(batch)
        with model.config():
            # As for 16 bits: only for them are kernels installed. GELU's epilogue is another formula.
            chosen = KernelSettings(gelu_epilogue=False)
            kernels = install_kernels(model.model, torch.float16, chosen, causal=model.causal)
        kernels.cu_seqlens, kernels.longest = torch.from_numpy(batch.cu_seqlens), batch.longest
        replaced = sorted({type(module).__name__ for module in model.model.modules() if "forward" in vars(module)})
        difference = (hidden_states(batch) - expected).abs().max() / expected.abs().max()
        differences.append(float(difference))
        kernels.remove()
    print(json.dumps({"replaced": replaced, "differences": differences}))
    sys.stdout.flush()
