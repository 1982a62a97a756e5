"""How far the engine's vectors are from transformers in float32, by length: cosines, the lowest and the median.

python -m tritonembed_perf.precision MODEL_FOLDER [--device cpu|cuda] [--executor scheduler] [--vllm JSON]

`--executor scheduler` asks vLLM itself, for comparison. For models that transformers' AutoModel loads, without a Dense
module; sentences are of random ids.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_perf.executor import add_model_options, load_executor
from tritonembed_perf.machine import describe_command, describe_machine
from tritonembed_perf.output import output_file

if TYPE_CHECKING:
    import numpy.typing as npt

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 512)
SENTENCES = 32
"""Of each length."""


def main() -> None:
    """Print a row a length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--executor", choices=("direct", "scheduler"), default="direct")
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    executor, files = load_executor(options.model, options.device, options.vllm, options.executor)
    rng = np.random.default_rng(0)
    lengths = [length for length in LENGTHS if length < files.max_length] + [files.max_length]
    batches = [[rng.integers(0, files.vocab_size, length, dtype="<i4") for _ in range(SENTENCES)] for length in lengths]
    answers = [executor.launch([ids.tobytes() for ids in batch]).result() for batch in batches]
    executor.close()
    expected = _reference(options.model, files.pooling, batches, options.device)
    rows = []
    for length, answer, reference in zip(lengths, answers, expected, strict=True):
        norms = np.linalg.norm(answer, axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (answer * reference).sum(1) / norms
        rows.append({"tokens": length, "lowest": float(cosines.min()), "median": float(np.median(cosines))})
        print(f"{length:>5} tokens: cosine {cosines.min():.6f} and more, median {np.median(cosines):.6f}", flush=True)
    if options.json:
        report = {"machine": describe_machine(), "command": describe_command("precision"), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _reference(
    folder: str, pooling: str, batches: list[list["npt.NDArray[np.int32]"]], device: str
) -> list["npt.NDArray[np.float32]"]:
    import torch
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    expected = []
    with torch.inference_mode():
        for batch in batches:
            hidden = model(input_ids=torch.from_numpy(np.stack(batch)).long().to(device)).last_hidden_state
            pooled = {"MEAN": hidden.mean(1), "CLS": hidden[:, 0], "LAST": hidden[:, -1]}[pooling]
            expected.append(pooled.cpu().numpy())
    return expected


if __name__ == "__main__":
    main()
