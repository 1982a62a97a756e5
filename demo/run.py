"""The demo: a Triton server on this machine, 300 sentences, and which of them are nearest to a query.

    python -m demo.run [--query TEXT] [--model NAME_OR_FOLDER]

Starts a server on free ports of the loopback, and stops it whatever happens.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from demo.model import DemoModel, find_model
from rich.console import Console
from rich.status import Status
from rich.table import Table

from tritonembed import EmbeddingClient, TritonEmbedError
from tritonembed_perf.server import ServerEndedError, running_server

Vectors = npt.NDArray[np.float32]
"""[texts, dimensions]"""
Cosines = npt.NDArray[np.float64]
"""[texts on the left, texts on the right]"""

CORPUS = Path(__file__).with_name("corpus.txt")
QUERIES = (
    "I can't fall asleep.",
    "How wet was it on Saturday?",
    "How do I keep creatures away from my salad?",
    "A brilliant kick won the championship.",
    "Their relationship is over.",
    "The notebook is stuck and has to be rebooted.",
)
NEIGHBOURS = 3
SINGLE_REQUESTS = 50
ROUNDS = 5
console = Console(markup=False, emoji=False, highlight=False)


def main() -> int:
    """Run it. If the server does not start, the result is its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", help="a sentence of your own instead of the built-in ones")
    parser.add_argument("--model", help="name on the Hugging Face hub, or a folder; all-MiniLM-L6-v2 by default")
    options = parser.parse_args()
    model = DemoModel(options.model, f"The model is {options.model}.") if options.model else find_model()
    console.print(model.description)
    try:
        with console.status("starting tritonserver with vLLM …") as status:
            show(model.name, [options.query] if options.query else QUERIES, status)
    except ServerEndedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except TritonEmbedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print('The server is stopped. Try a query of your own: make demo QUERY="…". To keep a server: make serve.')
    return 0


def show(model: str, queries: Sequence[str], status: Status) -> None:
    """The part of the demo that needs the server."""
    corpus = read_corpus()
    started = time.monotonic()
    with running_server(model) as server:
        console.print(f"The server was up after {time.monotonic() - started:.0f} s, gRPC on {server.target}.")
        with EmbeddingClient(server.target) as client:
            vectors = client.embed(corpus).embeddings
            cosines = cosine_table(client.embed(queries, input_type="query").embeddings, vectors)
            show_nearest(queries, corpus, cosines)
            status.update("measuring the speed …")
            show_speed(corpus, client)
        status.update("computing the same vectors with transformers …")
        difference = largest_difference(vectors, transformers_vectors(model, corpus))
        console.print(
            f"Compared with transformers in float32, the cosine of two of the {len(corpus)} sentences differs "
            f"by {difference:.1e} at most."
        )
        status.update("stopping the server …")


def read_corpus() -> list[str]:
    """The sentences of corpus.txt: each paragraph has one meaning in several wordings, a line with # names a topic."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def cosine_table(left: Vectors, right: Vectors) -> Cosines:
    """Cosines in float64, so that rounding here adds no difference."""
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.outer(np.linalg.norm(wide_left, axis=1), np.linalg.norm(wide_right, axis=1))
    cosines: Cosines = wide_left @ wide_right.T / lengths
    return cosines


def show_nearest(queries: Sequence[str], corpus: Sequence[str], cosines: Cosines) -> None:
    """cosines: [queries, sentences]"""
    table = Table(title=f"The nearest of {len(corpus)} sentences", title_justify="left")
    table.add_column("query")
    table.add_column("cosine", justify="right")
    table.add_column("nearest")
    for query, row in zip(queries, cosines, strict=True):
        for rank, nearest in enumerate(np.argsort(-row)[:NEIGHBOURS]):
            table.add_row("" if rank else query, f"{row[nearest]:.3f}", corpus[nearest])
        table.add_section()
    console.print(table)


def show_speed(corpus: Sequence[str], client: EmbeddingClient) -> None:
    """Throughput over the whole corpus, and the latency of one sentence at a time; medians."""
    seconds, tokens = [], 0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        tokens = int(client.embed(corpus).num_tokens.sum())
        seconds.append(time.perf_counter() - start)
    latencies = []
    for text in corpus[:SINGLE_REQUESTS]:
        start = time.perf_counter()
        client.embed([text])
        latencies.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    console.print(
        f"{len(corpus) / median:,.0f} sentences/s, {tokens / median:,.0f} tokens/s in requests of 64 sentences; "
        f"a single sentence takes {statistics.median(latencies) * 1000:.1f} ms (medians)."
    )


def transformers_vectors(model: str, texts: Sequence[str]) -> Vectors:
    """The texts' vectors from sentence-transformers, over transformers in float32."""
    # Imported here: they take seconds, and `--help` or a server that does not start would wait for them.
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    reference = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    vectors: Vectors = reference.encode(list(texts), show_progress_bar=False)
    return vectors


def largest_difference(left: Vectors, right: Vectors) -> float:
    """The largest difference between the cosine of two texts in `left` and in `right`, over all pairs."""
    return float(np.abs(cosine_table(left, left) - cosine_table(right, right)).max())


if __name__ == "__main__":
    sys.exit(main())
