"""An engine with two adapters, without Triton: `python -m tests.integration.adapter_vectors FOLDER LAW MED OUT`.

OUT: an .npz with the vectors of sentences of random ids (`ids`, `lengths`), not normalised: in one batch in which every
third sentence is the base model's and the others are of one adapter each (`mixed`), and all of the base model (`base`).
stderr names the executor, and has the result of the check at load.
"""

import sys

from tritonembed_engine.stub.process import log_as, prepare_process

LENGTHS = (3, 17, 40, 9, 30, 5, 12)
ADAPTERS = (None, "law", "med")

if __name__ == "__main__":
    prepare_process(visible_gpus=None)
    log_as("embedder_0_0")
    import numpy as np

    from tritonembed_engine.factory import create_engine
    from tritonembed_engine.model.adapters import read_adapters
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.request import Request
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    folder, law, med, out = sys.argv[1:]
    settings = ModelSettings.model_validate({"model": folder, "adapters": {"law": law, "med": med}})
    files = read_model_files(folder)
    engine = create_engine(settings, files, "cpu", adapters=read_adapters(settings, files))
    rng = np.random.default_rng(0)
    sentences = [rng.integers(5, files.vocab_size, length).astype("<i4") for length in LENGTHS]

    def embed(adapters: "tuple[str | None, ...]") -> "np.ndarray":  # type: ignore[type-arg]
        requests = [
            Request(TokenIds.join([sentence.tobytes()]), adapter=adapters[n % len(adapters)])
            for n, sentence in enumerate(sentences)
        ]
        return np.concatenate([future.result() for future in engine.submit_all(requests)])

    base = embed((None,))
    np.savez(out, ids=np.concatenate(sentences), lengths=LENGTHS, mixed=embed(ADAPTERS), base=base)
    engine.close()
    sys.stdout.flush()
