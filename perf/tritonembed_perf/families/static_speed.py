"""The static executor against sentence-transformers on a CPU: texts per second in one process, in turn.

python -m tritonembed_perf.families.static_speed [--shape 50x1024] [--json FILE]

Three rates: our executor alone, from ids to vectors; our tokenizer and engine; sentence-transformers' `encode`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.families.transformers_speed import BATCH_SIZES, make_ours, make_theirs, texts_of
from tritonembed_perf.options import output_file
from tritonembed_perf.reports import describe_script, write_report

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 256
"""The table has the shape of potion-base-8M: BERT's vocabulary x 256."""

ROUNDS = 9


def main() -> None:
    """Print the three rates, the medians of ROUNDS, and the least cosine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="50x1024", help="tokens x texts of one call")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--mixed", action="store_true", help="lengths from 3 up to the tokens of --shape")
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    tokens, count = map(int, options.shape.split("x"))
    environment = describe_script("static_speed")
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    with tempfile.TemporaryDirectory(prefix="static-speed-") as folder:
        place = Path(folder) / "static"
        write(place)
        row = measure(place, texts_of(tokens, count, options.mixed), options.rounds)
    report = {**environment, "shape": options.shape, "mixed": options.mixed, **row}
    write_report(options.json, report)


def write(folder: Path) -> None:
    """A random table with BERT's tokenizer, and Normalize."""
    import torch

    from tritonembed_perf.families import vocabularies
    from tritonembed_perf.families.sentence import OLD, Module, normalize, write_sentence_files
    from tritonembed_perf.families.static import write_table

    table = torch.randn(vocabularies.BERT_VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1))
    write_table(folder, state={"embedding.weight": table})
    write_sentence_files(folder, [Module("", f"{OLD}StaticEmbedding"), normalize()], max_length=None)


def measure(folder: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Texts per second of each side, in turn."""
    import numpy as np

    sides = {
        "executor": make_executor(folder, texts),
        "ours": make_ours(folder, texts, "cpu"),
        "sentence_transformers": make_theirs(folder, texts, "cpu")(*BATCH_SIZES["cpu"]),
    }
    cosine = float(np.einsum("ij,ij->i", sides["ours"](), sides["sentence_transformers"]()).min())
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            rates[side].append(len(texts) / (time.perf_counter() - start))
    medians = {side: statistics.median(rate) for side, rate in rates.items()}
    shown = ", ".join(f"{side} {rate:,.0f} texts/s" for side, rate in medians.items())
    print(f"{shown}; cosine {cosine:.6f} and more", flush=True)
    return {"rates": rates, "medians": medians, "least_cosine": cosine}


def make_executor(folder: Path, texts: list[str]) -> "Callable[[], Any]":
    """Our executor alone: the ids are known."""
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})
    files = read_model_files(str(folder))
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in texts], EmbedParameters())])
    assert isinstance(ids, list)
    sentences, executor = TokenIds.join(ids), create_executor(settings, files, "cpu")
    return lambda: executor.launch(sentences).result()


if __name__ == "__main__":
    main()
