"""Creates a model's executor with a broken direct executor: `python -m tests.integration.broken_direct FOLDER`.

Prints one line of JSON per fault: the executor that serves, and its vectors of two sentences. vLLM loads the model only
once, because that takes most of the time.
"""

import json
import sys

from tritonembed_engine.stub.process import prepare_process

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import numpy as np

    from tritonembed_engine import factory, vllm_factory
    from tritonembed_engine.executors import direct
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    right = direct.forward

    def one_position_off(model, ids, positions, *rest):  # type: ignore[no-untyped-def]
        """Plausible but wrong vectors, as after a change inside vLLM."""
        return right(model, ids, (positions + 1) % 64, *rest)

    def raises(*_):  # type: ignore[no-untyped-def]
        """An error like that of a kernel that can't be compiled, or of a name that has moved."""
        raise ImportError("gone")

    settings, files = ModelSettings(model=sys.argv[1]), read_model_files(sys.argv[1])
    # As if it were not installed: else the openvino executor would serve.
    sys.modules["openvino"] = None  # type: ignore[assignment]
    llm = vllm_factory.load_vllm(settings, files, "cpu")
    vllm_factory.load_vllm = lambda *_: llm
    sentences = [np.arange(1000, 1000 + n, dtype="<i4").tobytes() for n in (5, 40)]
    for broken in (one_position_off, raises):
        direct.forward = broken
        executor = factory.create_executor(settings, files, "cpu")
        vectors = executor.launch(TokenIds.join(sentences)).result().tolist()
        print(json.dumps({"how": broken.__name__, "executor": executor.name, "vectors": vectors}))
    sys.stdout.flush()
