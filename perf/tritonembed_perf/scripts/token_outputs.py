"""Sparse weights and vectors of tokens: their rate as a share of the rate without them, on the same batches.

    python -m tritonembed_perf.scripts.token_outputs write FOLDER [--preset bert-base] [--heads bge-m3]
    python -m tritonembed_perf.scripts.token_outputs measure FOLDER [--device cpu] [--shape 16x50] [--json FILE]

`write`: a random-weight model of a known shape, with bge-m3's heads, ColBERT's or SPLADE's (a masked language model).
`measure`: sentences per second for each output, and for all of them, bytes of the answers included, and the share of
the rate without them: of the dense vector or, if the model gives none, of the encoder alone. As many batches are in
flight as the executor takes. Rounds alternate; the fastest counts.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from typer import Argument, Option

from tritonembed_manager.commands.options import with_options
from tritonembed_perf import models
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import run_script
from tritonembed_perf.scripts.engine import read_shape
from tritonembed_perf.scripts.executor import ExecutorOptions, load_executor

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Pending
    from tritonembed_engine.ragged import Ragged

ROUNDS = 15
BATCHES = {"cpu": 2, "cuda": 10}
KEPT = 200
"""Weights per text of the SPLADE model, about as many as a trained model gives."""
COLBERT_WIDTH = 128


def write(
    folder: Annotated[Path, Argument(help="A folder that does not exist.")],
    preset: Annotated[
        Literal["bert-6x384", "bert-base", "xlm-roberta-large"], Option("bert-base", help="Shape of the model.")
    ],
    heads: Annotated[Literal["bge-m3", "colbert", "splade"], Option("bge-m3", help="Outputs per token.")],
) -> dict[str, Any]:
    """A random-weight model with outputs per token."""
    import torch

    models.write_preset(preset, folder)
    if heads == "splade":
        _make_splade(folder)
        return {"rows": []}
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    rows = {"sparse": 1, "colbert": width}
    if heads == "colbert":
        # As bge-m3 has it, but without the other head and with the usual width of ColBERT's vectors.
        rows = {"colbert": COLBERT_WIDTH}
    generator = torch.Generator().manual_seed(0)
    for name, count in rows.items():
        weight = torch.randn(count, width, generator=generator) / width**0.5
        torch.save({"weight": weight, "bias": torch.zeros(count)}, folder / f"{name}_linear.pt")
    return {"rows": []}


def _make_splade(folder: Path) -> None:
    """Add a head to the model, and replace the pooling."""
    import torch
    from transformers import BertForMaskedLM

    model: Any = BertForMaskedLM.from_pretrained(folder)
    ids = torch.randint(model.config.vocab_size, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        heaviest = model(input_ids=ids).logits.amax(1).topk(KEPT).values[:, -1]
    model.cls.predictions.bias.data -= heaviest.mean()
    model.save_pretrained(folder)
    place = "sentence_transformers.sparse_encoder.models."
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": f"{place}MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{place}SpladePooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_SpladePooling").mkdir()
    (folder / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "max"}')
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')


def measure(
    options: ExecutorOptions, shape: Annotated[str, Option("16x50", help="SENTENCESxTOKENS of a batch.")]
) -> dict[str, Any]:
    """The rate of each output as a share of the rate without them."""
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.tokenizing.token_choice import TokenChoice
    from tritonembed_protocol.framing import rows_as_bytes

    sentences, tokens = read_shape("--shape", shape)
    loaded = load_executor(options)
    choice, names = TokenChoice(loaded.files), loaded.files.token_outputs.per_token
    if not names:
        raise BenchError("the model gives dense vectors only")
    if reason := loaded.reason_against(sentences, tokens):
        raise BenchError(f"--shape {shape}: {reason}")
    rng = np.random.default_rng(0)
    batches = [loaded.random_batch(rng, sentences, tokens) for _ in range(BATCHES[options.device])]
    parameters = EmbedParameters()

    def finish(pending: "Pending") -> None:
        rows_as_bytes(pending.result())
        for name, output in pending.token_outputs.items():
            _ENCODERS[name](output, parameters)

    def seconds(asked: Sequence[str]) -> float:
        start, launched = time.perf_counter(), deque["Pending"]()
        for batch in batches:
            choices = choice.choose(parameters, tuple(asked), batch)
            launched.append(loaded.executor.launch(batch, None, None, choices or None))
            if len(launched) == loaded.executor.depth:
                finish(launched.popleft())
        while launched:
            finish(launched.popleft())
        return time.perf_counter() - start

    combinations: list[tuple[str, ...]] = [(), *((name,) for name in names)]
    if len(names) > 1:
        combinations.append(names)
    for asked in combinations:
        seconds(asked)
    times = np.array([[seconds(asked) for asked in combinations] for _ in range(ROUNDS)])
    # The least time: other work on the machine only makes a round longer.
    rates = (len(batches) * sentences / times.min(axis=0)).tolist()
    shares = (times[:, 0].min() / times.min(axis=0)).tolist()
    rows = []
    for asked, rate, share in zip(combinations, rates, shares, strict=True):
        label = " + ".join(asked) or "without"
        rows.append({"outputs": label, "sentences_per_second": rate, "share": share})
        print(f"{shape}  {label:24} {rate:9.1f} sentences/s   {share:.3f} of the rate without", flush=True)
    return {"rows": rows}


def _sparse(output: "Ragged", parameters: Any) -> list[bytes]:
    from tritonembed_engine.vectors import sparse_elements

    return sparse_elements(output, parameters, str)


def _multi_vector(output: "Ragged", parameters: Any) -> list[bytes]:
    from tritonembed_engine.vectors import multi_vector_elements

    return multi_vector_elements(output, parameters, True)


_ENCODERS: dict[str, Callable[["Ragged", Any], list[bytes]]] = {"sparse": _sparse, "multi_vector": _multi_vector}

if __name__ == "__main__":
    run_script("token_outputs", __doc__, *(with_options(one, variables=False) for one in (write, measure)))
