"""An executor in two processes: `python -m tests.slow.spread_executor wrong|killed|left FOLDER`.

wrong: the direct executor fails its check; prints what serves and how right it is. killed: the other process is killed
during batches. left: this process is killed, after printing the id of the other one.
"""

import logging
import os
import signal
import sys

import psutil

from tritonembed_engine.stub.process import log_as, prepare_process


def main() -> None:
    mode, folder = sys.argv[1:]
    prepare_process(visible_gpus=None)
    log_as("rank 0")
    import numpy as np

    from tritonembed_engine import factory, vllm_factory
    from tritonembed_engine.executors.agreement import Disagreement
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds

    def disagree(*_: object) -> float:
        raise Disagreement("one value is off")

    if mode == "wrong":
        vllm_factory.check_agreement = disagree
    logging.captureWarnings(True)
    settings = ModelSettings.model_validate({"model": folder, "vllm": {"tensor_parallel_size": 2}})
    executor = factory.create_executor(settings, read_model_files(folder), "cpu")
    sentences = [np.arange(1000, 1000 + n, dtype="<i4") for n in (1, 7, 50)]
    batch = TokenIds.join([ids.tobytes() for ids in sentences])
    [other] = [child for child in psutil.Process().children() if "follower" in " ".join(child.cmdline())]
    if mode == "left":
        executor.launch(batch).result()
        print(other.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "killed":
        other.kill()
        while True:
            executor.launch(batch).result()
    found = executor.launch(batch).result()
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    cosines = []
    with torch.inference_mode():
        for ids, vector in zip(sentences, found, strict=True):
            expected = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0, -1].numpy()
            cosines.append(vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected))
    print(f"{executor.name}: cosine {min(cosines):.4f} and more to transformers", flush=True)
    executor.close()


if __name__ == "__main__":
    main()
