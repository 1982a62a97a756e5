"""LoRA adapters: three ways to compute a batch whose sentences are of several adapters, beside the base model's rate.

    python -m tritonembed_perf.scripts.adapters [--preset bert-base] [--rank 16] [--adapters 8] [--shape 64x50]

`base`: the model alone, its adapters loaded and not used. `one`: every sentence is of one adapter. `mixed`: one batch
of all adapters, each with the same number of sentences, in which rows get their adapter's product added (what serves).
`grouped`: a batch per adapter, computed the same way. `merged`: a batch per adapter, each after B·A was added to the
weights, and subtracted again afterwards (peft's merge). Rounds alternate; the fastest counts.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from typer import Option

from tritonembed_manager.commands.options import with_options
from tritonembed_perf import models
from tritonembed_perf.failures import BenchError
from tritonembed_perf.models import write_adapter
from tritonembed_perf.options import run_script
from tritonembed_perf.scripts.engine import read_shape
from tritonembed_perf.scripts.executor import ExecutorOptions, load_executor

ROUNDS = 12
LAYERS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
"""All matrices of a layer of BERT."""


def measure(
    preset: Annotated[Literal["bert-6x384", "bert-base"], Option("bert-base", help="Shape of the model.")],
    rank: Annotated[int, Option(16, min=1, help="Rank of every matrix.")],
    adapters: Annotated[int, Option(8, min=1, help="Number of adapters.")],
    shape: Annotated[str, Option("64x50", help="SENTENCESxTOKENS of a batch.")],
    device: Annotated[Literal["cpu", "cuda"], Option("cpu")],
) -> dict[str, Any]:
    """The rate of each way as a share of the base model's."""
    import torch

    from tritonembed_engine.model.adapters import read_adapter, read_pairs

    sentences, tokens = read_shape("--shape", shape)
    share = sentences // adapters
    if share * adapters != sentences:
        raise BenchError("--shape: its sentences must be a multiple of --adapters")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / preset
        models.write_preset(preset, folder)
        loaded = load_executor(ExecutorOptions(model=str(folder), device=device, executor="direct"))
        executor: Any = loaded.executor
        places: list[tuple[Any, Any, Any]] = []
        for number in range(adapters):
            path = write_adapter(Path(scratch) / str(number), folder, LAYERS, rank=rank, seed=number)
            pairs = list(read_pairs(read_adapter(str(number), str(path), loaded.files)))
            executor.adapters.add(str(number), pairs)
            if not number:
                made = [(pair.b.to(device), pair.a.to(device)) for pair in pairs]
                places = [(torch.zeros(b.shape[0], a.shape[1], device=device), b, a) for b, a in made]
    rng = np.random.default_rng(0)
    whole = loaded.random_batch(rng, sentences, tokens)
    parts = [whole.cut(share * number, share * (number + 1)) for number in range(adapters)]
    mixed = [(str(number), share * number, share * (number + 1)) for number in range(adapters)]

    def grouped() -> None:
        for number, part in enumerate(parts):
            executor.launch(part, adapted=[(str(number), 0, share)]).result()

    def merged() -> None:
        for part in parts:
            for weight, b, a in places:
                weight.addmm_(b, a)
            executor.launch(part).result()
            for weight, b, a in places:
                weight.addmm_(b, a, alpha=-1)

    ways: dict[str, Callable[[], Any]] = {
        "base": lambda: executor.launch(whole).result(),
        "one": lambda: executor.launch(whole, adapted=[("0", 0, sentences)]).result(),
        "mixed": lambda: executor.launch(whole, adapted=mixed).result(),
        "grouped": grouped,
        "merged": merged,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name, seconds in times.items():
        # The first round warms up; other work on the machine only makes a round longer.
        best = min(seconds[1:])
        part_of_base = min(times["base"][1:]) / best
        rows.append({"way": name, "tokens_per_second": whole.tokens / best, "share": part_of_base})
        print(f"{shape}  {name:8} {whole.tokens / best:12,.0f} tokens/s   {part_of_base:.3f} of base", flush=True)
    return {"rows": rows}


if __name__ == "__main__":
    run_script("adapters", __doc__, with_options(measure, variables=False))
