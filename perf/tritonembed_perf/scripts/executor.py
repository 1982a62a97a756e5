"""The engine's executor in this process, without Triton, for the scripts that measure it alone."""

import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.options import Model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.token_ids import TokenIds

PAD = 1
"""The padding id of RoBERTa and its relatives, for a config.json without `pad_token_id`."""


@dataclass(frozen=True)
class LoadedExecutor:
    """An executor, and the largest batch that it can run."""

    label: str
    """The executor's name, and the kernels that were switched."""

    executor: "Executor"
    files: "ModelFiles"
    most_tokens: int
    """Tokens that its buffers hold. On a GPU the batch budget may be smaller: the least that reaches full speed."""

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
        """Ids [sentences, tokens] without the padding id, to which transformers gives no position."""
        from tritonembed_engine.model.folder import read_object

        pad = read_object(self.files.folder / "config.json").get("pad_token_id", PAD)
        known = isinstance(pad, int) and 0 <= pad < self.files.vocab_size
        ids = rng.integers(0, self.files.vocab_size - known, (sentences, tokens), dtype="<i4")
        return ids + (ids >= pad) if known else ids

    def random_batch(self, rng: "np.random.Generator", sentences: int, tokens: int) -> "TokenIds":
        """Random ids, in the form that `launch` takes."""
        return _joined(self.random_ids(rng, sentences, tokens))

    def embed(self, ids: "npt.NDArray[np.int32]") -> "npt.NDArray[np.float32]":
        """Pooled vectors [sentences, dimensions] of ids [sentences, tokens], as one batch."""
        return self.executor.launch(_joined(ids)).result()

    def seconds(self, batch: "TokenIds") -> float:
        """Seconds of the batch alone."""
        start = time.perf_counter()
        self.executor.launch(batch).result()
        return time.perf_counter() - start


def _joined(ids: "npt.NDArray[np.int32]") -> "TokenIds":
    from tritonembed_engine.token_ids import TokenIds

    return TokenIds.join([sentence.tobytes() for sentence in ids])


@dataclass(frozen=True)
class ExecutorOptions:
    """The options of what to load."""

    model: Model
    device: Annotated[Literal["cpu", "cuda"], Option()] = "cpu"
    executor: Annotated[
        str, Option(help="The executor, for `speed` several with commas; direct+NAME and direct-NAME switch a kernel.")
    ] = "auto"
    deterministic: Annotated[bool, Option(None, "--deterministic", help="One sentence per forward pass.")] = False
    vllm: Annotated[str, Option(help="vLLM engine arguments as JSON.", show_default=False)] = "{}"


def load_executor(options: ExecutorOptions) -> LoadedExecutor:
    """Load it and print its name. Raises BenchError if there is no GPU or the model can't be loaded."""
    arguments = _read_arguments(options.vllm)
    from tritonembed_engine.stub.process import prepare_process

    device, on_gpu = options.device, options.device == "cuda"
    name, kernels = read_kernels(options.executor)
    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if on_gpu else None)
    if on_gpu:
        check_gpu()
    from pydantic import ValidationError

    from tritonembed_engine.errors import ModelError
    from tritonembed_engine.executors.loading import max_batch_tokens
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    engine = {"executor": name, "deterministic": options.deterministic, "kernels": kernels}
    vllm = {**({"gpu_memory_utilization": 0.1} if on_gpu else {}), **arguments}
    try:
        settings = ModelSettings.model_validate({"model": options.model, "vllm": vllm, "engine": engine})
        files = read_model_files(options.model, settings.revision, settings.max_model_len)
        loaded = create_executor(settings, files, device)
    except ValidationError as error:
        first = error.errors()[0]
        raise BenchError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ModelError as error:
        raise BenchError(str(error)) from None
    label = loaded.name + options.executor.removeprefix(name)
    print(f"executor: {label}, {vllm}", flush=True)
    return LoadedExecutor(label, loaded, files, max_batch_tokens(settings, files, device))


def check_gpu() -> None:
    """Raises BenchError if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise BenchError("there is no GPU")


def read_kernels(text: str) -> tuple[str, dict[str, bool]]:
    """The executor's name, and switches of kernels: `direct+pooled_rows-gelu_gate` has two."""
    name, *switches = re.split("([+-])", text)
    return name, {kernel: sign == "+" for sign, kernel in zip(switches[::2], switches[1::2], strict=True)}


def _read_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(f"--vllm: {text!r} is no JSON object")
    return arguments
