"""Vectors of packed batches without Triton: `python -m tests.integration.packed_vectors FOLDER IDS OUT [VLLM]`.

IDS: an .npz with one array of token ids per sentence. OUT: an .npz with their vectors in one batch (`together`), in one
batch in the reverse order (`reversed`), in a batch per sentence (`alone`), and the executor's name. VLLM: vLLM's
arguments as JSON.
"""

import json
import sys

from tritonembed_engine.stub.process import prepare_process

ENGINE = {"executor": "direct", "reference": "off"}

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    import numpy as np

    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    folder, ids, out, *vllm = sys.argv[1:]
    arguments = json.loads(vllm[0]) if vllm else {}
    settings = ModelSettings.model_validate({"model": folder, "vllm": arguments, "engine": ENGINE})
    with np.load(ids) as stored:
        sentences = [stored[name].astype("<i4").tobytes() for name in stored.files]
    executor = create_executor(settings, read_model_files(folder), "cpu")

    def embed(batch: list[bytes]) -> "np.ndarray":  # type: ignore[type-arg]
        found = executor.launch(TokenIds.join(batch)).result()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    np.savez(
        out,
        together=embed(sentences),
        reversed=embed(sentences[::-1])[::-1],
        alone=np.concatenate([embed([sentence]) for sentence in sentences]),
        executor=executor.name,
    )
    executor.close()
    sys.stdout.flush()
