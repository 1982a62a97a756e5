"""The engine's executor in this process, without Triton, for the scripts that measure it alone."""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritonembed_perf.options import script_parser

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.token_ids import TokenIds

PAD = 1
"""RoBERTa's and its relatives', for a config.json that leaves out what transformers knows."""


@dataclass(frozen=True)
class LoadedExecutor:
    """An executor, and the largest batch that it can run."""

    executor: "Executor"
    files: "ModelFiles"
    most_tokens: int
    """Its buffers' size. On a GPU its own budget may be smaller: the least at which the GPU is at full speed."""

    def reason_against(self, sentences: int, tokens: int) -> str | None:
        """Why such a batch can't be run; None if it can. tokens: per sentence."""
        if tokens > self.files.max_length:
            return f"the longest text of this model has {self.files.max_length} tokens"
        if sentences > self.executor.max_batch_sentences:
            return f"a batch holds at most {self.executor.max_batch_sentences} sentences"
        if sentences * tokens > self.most_tokens:
            return f"a batch holds at most {self.most_tokens} tokens"
        return None

    def random_ids(self, rng: "np.random.Generator", sentences: int, tokens: int) -> "npt.NDArray[np.int32]":
        """Ids [sentences, tokens], none of them padding's: transformers gives that no position of its own."""
        from tritonembed_engine.model.folder import read_object

        pad = read_object(self.files.folder / "config.json").get("pad_token_id", PAD)
        known = isinstance(pad, int) and 0 <= pad < self.files.vocab_size
        ids = rng.integers(0, self.files.vocab_size - known, (sentences, tokens), dtype="<i4")
        return ids + (ids >= pad) if known else ids

    def seconds(self, batch: "TokenIds") -> float:
        """That the batch takes alone."""
        start = time.perf_counter()
        self.executor.launch(batch).result()
        return time.perf_counter() - start

    def random_batch(self, rng: "np.random.Generator", sentences: int, tokens: int) -> "TokenIds":
        """The same, as `launch` takes them."""
        from tritonembed_engine.token_ids import TokenIds

        return TokenIds.join([ids.tobytes() for ids in self.random_ids(rng, sentences, tokens)])


def executor_parser(doc: str | None, *, device: bool = True, json: bool = True) -> argparse.ArgumentParser:
    """`script_parser` with what loads an executor."""
    parser = script_parser(doc, json=json)
    parser.add_argument("--vllm", type=_arguments, default={}, help="vLLM engine arguments as JSON")
    if device:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def load_executor(
    model: str, device: str, vllm: dict[str, Any], executor: str = "auto", deterministic: bool = False
) -> LoadedExecutor:
    """Load it and print its name.

    model: a folder. device: "cpu" or "cuda". vllm: vLLM engine arguments. executor: as in model.json. Ends the script
    with one line if there is no GPU or the model can't be loaded.
    """
    from tritonembed_engine.stub.process import prepare_process

    on_gpu = device == "cuda"
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if on_gpu else None)
    if on_gpu:
        check_gpu()
    from pydantic import ValidationError

    from tritonembed_engine.errors import ModelError
    from tritonembed_engine.executors.loading import max_batch_tokens
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    engine = {"executor": executor, "deterministic": deterministic}
    vllm = {**({"gpu_memory_utilization": 0.1} if on_gpu else {}), **vllm}
    try:
        settings = ModelSettings.model_validate({"model": model, "vllm": vllm, "engine": engine})
        files = read_model_files(model, settings.revision, settings.max_model_len)
        loaded = create_executor(settings, files, device)
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"error: {first['loc'][0]}: {first['msg']}")
    except ModelError as error:
        sys.exit(f"error: {error}")
    print(f"executor: {loaded.name}, {vllm}", flush=True)
    return LoadedExecutor(loaded, files, max_batch_tokens(settings, files, device))


def check_gpu() -> None:
    """End the script with one line if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU")


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return arguments
