"""Loads a causal model and breaks the direct executor: `python -m tests.integration.broken_decoder FOLDER`.

Prints one line of JSON: reasons why models of other kinds are refused, the executor that serves after the failure, the
lengths that vLLM was loaded for, and the vectors of two sentences.
"""

import json
import sys

from tritonembed_engine.stub.process import prepare_process

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import numpy as np
    import torch

    from tritonembed_engine import factory, vllm_factory
    from tritonembed_engine.executors import direct
    from tritonembed_engine.executors.vllm_internals import DirectUnavailable, Exchanged, open_model
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    settings = ModelSettings.model_validate({"model": sys.argv[1], "engine": {"reference": "off"}})
    files = read_model_files(sys.argv[1])
    llm = vllm_factory.load_vllm(settings, files, "cpu", vllm_factory.longest_in_vllm(settings, files))
    runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
    group = runner.attn_groups[0][0]
    layer = runner.vllm_config.compilation_config.static_forward_context[group.layer_names[-1]]

    class OtherBackend(type(layer.impl)):  # type: ignore[misc]
        """Of another name."""

    class OtherSpec(type(group.kv_cache_spec)):  # type: ignore[misc]
        """As vLLM's for latent attention: a subclass."""

    def reason() -> str:
        try:
            open_model(llm)
        except DirectUnavailable as problem:
            return str(problem)
        return ""

    reasons = {"as it is": reason()}
    with Exchanged([(layer, "kv_sharing_target_layer_name", "another")]):
        reasons["shared"] = reason()
    with Exchanged([(layer, "kv_cache_torch_dtype", torch.float8_e4m3fn)]):
        reasons["rounded"] = reason()
    with Exchanged([(layer.impl, "__class__", OtherBackend)]):
        reasons["backend"] = reason()
    other = object.__new__(OtherSpec)
    with Exchanged([(group, "kv_cache_spec", other)]):
        reasons["attention"] = reason()

    # One load less: the process begins with the model that it has.
    loads: list[int | None] = []
    first, load = [llm], vllm_factory.load_vllm
    del llm, runner, group, layer

    def load_vllm(settings, files, device, longest=None, rank=None):  # type: ignore[no-untyped-def]
        loads.append(longest)
        return first.pop() if first else load(settings, files, device, longest)

    right = direct.forward
    vllm_factory.load_vllm = load_vllm  # type: ignore[assignment]
    # Every token attends to one that is not in its text.
    direct.forward = lambda model, ids, *rest: right(model, ids.roll(1), *rest)  # type: ignore[assignment]
    executor = factory.create_executor(settings, files, "cpu")
    sentences = [np.arange(300, 300 + n, dtype="<i4") % files.vocab_size for n in (5, 1500)]
    vectors = executor.launch(TokenIds.join([ids.astype("<i4").tobytes() for ids in sentences])).result().tolist()
    print(json.dumps({"reasons": reasons, "executor": executor.name, "loads": loads, "vectors": vectors}))
    sys.stdout.flush()
