"""Computes with our kernels, not vLLM's, in Triton's interpreter: `python -m tests.slow.computed_kernels FOLDER`.

The weights are float32, because the interpreter can't multiply bfloat16. Prints as JSON the classes of the layers that
were replaced, and per batch the largest difference to the hidden states of vLLM's own layers, as a share of the largest
value: of all tokens, and of each sentence's first and last, if the last layer computes these alone.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from tritonembed_engine.stub.process import prepare_process

BATCHES = ([3, 50, 64, 1, 20], [200, 7, 129, 2], [300, 1])
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
    files = read_model_files(sys.argv[1])
    model = open_model(load_vllm(settings, files, "cpu"))

    @torch.inference_mode()
    def hidden_states(batch: FlatBatch) -> torch.Tensor:
        ids, positions, cu_seqlens, lengths, places = map(
            torch.from_numpy, (batch.ids.copy(), batch.positions, batch.cu_seqlens, batch.lengths, batch.places)
        )
        return forward(model, ids, positions, cu_seqlens, cu_seqlens, lengths, batch.longest, places).clone()

    def unpack_weights() -> None:
        """As on a GPU: on a CPU vLLM keeps its own form of the weights alone, which can't be divided."""
        for module in model.model.modules():
            if type(module).__name__ == "QKVParallelLinear":
                bias = 0 if module.bias is None else module.bias
                weight = (module(torch.eye(module.input_size))[0] - bias).t()
                module.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)

    rng = np.random.default_rng(0)
    differences, pooled, replaced = [], [], []
    for lengths in ([min(length, files.max_length) for length in batch] for batch in BATCHES):
        ids = rng.integers(5, 100, sum(lengths)).astype(np.int32)
        batch = flatten(TokenIds(ids, np.array(lengths, np.int32)), None)
        expected = hidden_states(batch)
        with model.config():
            # As for 16 bits: only for them are kernels installed. GELU's epilogue is another formula.
            chosen = KernelSettings(gelu_epilogue=False, pooled_rows=True)
            kernels = install_kernels(model.model, torch.float16, chosen, causal=model.causal)
        kernels.cu_seqlens, kernels.longest = torch.from_numpy(batch.cu_seqlens), batch.longest
        replaced = sorted({type(module).__name__ for module in model.model.modules() if "forward" in vars(module)})
        difference = (hidden_states(batch) - expected).abs().max() / expected.abs().max()
        differences.append(float(difference))
        assert kernels.computes_rows
        ends = torch.from_numpy(batch.cu_seqlens).long()
        for rows in (ends[:-1], ends[1:] - 1):
            kernels.rows = rows
            found = hidden_states(batch)
            assert found.shape == expected[rows].shape
            pooled.append(float((found - expected[rows]).abs().max() / expected.abs().max()))
        kernels.remove()
        unpack_weights()
    print(json.dumps({"replaced": replaced, "differences": differences, "pooled": pooled}))
    sys.stdout.flush()
