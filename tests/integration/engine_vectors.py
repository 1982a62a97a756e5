"""Tokenizer and engine without Triton: `python -m tests.integration.engine_vectors FOLDER TEXTS OUT`.

TEXTS: a file with a JSON list of strings. OUT: an .npz with the vectors of all texts in one batch (`together`), of each
text alone (`alone`), and `num_tokens`. stderr names the executor that serves.
"""

import json
import sys
from pathlib import Path

from tritonembed_engine.stub.process import log_as, prepare_process

ENGINE = {"executor": "direct", "reference": "off"}

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    log_as("embedder_0_0")
    import numpy as np

    from tritonembed_engine import vectors
    from tritonembed_engine.factory import create_engine
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    folder, texts, out = sys.argv[1:]
    settings = ModelSettings.model_validate({"model": folder, "engine": ENGINE})
    files = read_model_files(folder)
    parameters = EmbedParameters()
    [sentences] = TextTokenizer(files).encode_requests(
        [([text.encode() for text in json.loads(Path(texts).read_text())], parameters)]
    )
    assert isinstance(sentences, list), sentences
    engine = create_engine(settings, files, "cpu")
    normalize = vectors.wants_unit_length(parameters, files.normalize)

    def embed(batch: list[bytes]) -> "np.ndarray":  # type: ignore[type-arg]
        found = engine.submit(batch, normalize=normalize).result()
        return vectors.finish(found, parameters, normalize, files.truncate_dim)

    alone = np.concatenate([embed([sentence]) for sentence in sentences])
    np.savez(out, together=embed(sentences), alone=alone, num_tokens=[len(ids) // 4 for ids in sentences])
    engine.close()
    sys.stdout.flush()
