"""How far the engine's vectors are from transformers in float32, by length: cosines, the lowest and the median.

python -m tritonembed_perf.scripts.precision MODEL_FOLDER [--device cpu|cuda] [--executor scheduler] [--vllm JSON]

`--executor scheduler` takes vLLM's own, for comparison. For models that transformers' AutoModel loads, without a Dense
module; sentences are of random ids.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.scripts.executor import LoadedExecutor, executor_parser, load_executor

if TYPE_CHECKING:
    import numpy.typing as npt

    Ids = npt.NDArray[np.int32]
    Vectors = npt.NDArray[np.float32]
    Embed = Callable[[Ids], Vectors]

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 512)
SENTENCES = 32
"""Of each length."""


def main() -> None:
    """Print a row per length, each as soon as it is known."""
    parser = executor_parser(__doc__)
    parser.add_argument("--executor", choices=("direct", "scheduler"), default="direct")
    options = parser.parse_args()
    environment = describe_script("precision")
    loaded = load_executor(options.model, options.device, options.vllm, options.executor)
    longest = loaded.files.max_length
    embed = _reference(options.model, options.vllm.get("revision"), loaded.files.pooling[0], options.device)
    rng = np.random.default_rng(0)
    rows = []
    for length in [*(length for length in LENGTHS if length < longest), longest]:
        cosines = _cosines(loaded, embed, loaded.random_ids(rng, SENTENCES, length))
        rows.append({"tokens": length, "lowest": float(cosines.min()), "median": float(np.median(cosines))})
        print(f"{length:>5} tokens: cosine {cosines.min():.6f} and more, median {np.median(cosines):.6f}", flush=True)
    loaded.executor.close()
    write_report(options.json, {**environment, "rows": rows})


def _cosines(loaded: LoadedExecutor, embed: "Embed", ids: "Ids") -> "Vectors":
    """Of each sentence, as few batches as the executor can hold. ids: [sentences, tokens]."""
    at_once = max(1, min(loaded.most_tokens // ids.shape[1], loaded.executor.max_batch_sentences))
    from tritonembed_engine.token_ids import TokenIds

    cosines = []
    for start in range(0, len(ids), at_once):
        batch = ids[start : start + at_once]
        answer, expected = (
            loaded.executor.launch(TokenIds.join([one.tobytes() for one in batch])).result(),
            embed(batch),
        )
        norms = np.linalg.norm(answer, axis=1) * np.linalg.norm(expected, axis=1)
        cosines.append((answer * expected).sum(1) / norms)
    return np.concatenate(cosines)


def _reference(model: str, revision: str | None, pooling: str, device: str) -> "Embed":
    """transformers' vectors of ids [sentences, tokens]."""
    import torch
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(model, revision=revision or "main", dtype=torch.float32).to(device).eval()

    def embed(ids: "Ids") -> "Vectors":
        with torch.inference_mode():
            hidden = loaded(input_ids=torch.from_numpy(ids).long().to(device)).last_hidden_state
            pooled = {"mean": hidden.mean(1), "cls": hidden[:, 0], "lasttoken": hidden[:, -1]}[pooling]
            vectors: Vectors = pooled.cpu().numpy()
            return vectors

    return embed


if __name__ == "__main__":
    main()
