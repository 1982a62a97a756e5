"""Loads a model with the direct path broken: `python -m tests.integration.broken_direct FOLDER wrong|raises`.

Prints the executor that serves, and its vectors of two sentences, as JSON.
"""

import json
import sys

from tritonembed_engine.stub import prepare_process

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import numpy as np

    from tritonembed_engine.executors import direct
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    right = direct.forward

    def one_position_off(model, ids, positions, *rest):  # type: ignore[no-untyped-def]
        """What a change inside vLLM could do: plausible vectors that are wrong."""
        return right(model, ids, (positions + 1) % 64, *rest)

    def raises(*_):  # type: ignore[no-untyped-def]
        """What a kernel does that can't be compiled, or a name that has moved."""
        raise ImportError("gone")

    direct.forward = {"wrong": one_position_off, "raises": raises}[sys.argv[2]]
    executor = create_executor(ModelSettings(model=sys.argv[1]), read_model_files(sys.argv[1]), "cpu")
    sentences = [np.arange(1000, 1000 + n, dtype="<i4").tobytes() for n in (5, 40)]
    print(json.dumps({"executor": executor.name, "vectors": executor.launch(sentences).result().tolist()}))
    sys.stdout.flush()
