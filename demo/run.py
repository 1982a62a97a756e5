"""The demo: a Triton server on this machine, a corpus through it, its nearest neighbours.

    python demo/run.py [--model NAME_OR_FOLDER]

Starts a server on free ports of the loopback, and stops it whatever happens.
"""

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tritonembed import EmbeddingClient
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.server import running_server

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE.parent / ".work" / "demo-model"
QUERIES = 8
NEIGHBOURS = 2
SINGLE_REQUESTS = 50
ROUNDS = 5
console = Console()


def main() -> int:
    """Run it; the exit code of a server that does not start becomes ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name on the Hugging Face hub, or a folder; by default the demo model")
    options = parser.parse_args()
    corpus = (HERE / "corpus.txt").read_text(encoding="utf-8").splitlines()
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            with console.status("starting tritonserver with vLLM …"):
                server = stack.enter_context(running_server(options.model or demo_model()))
            console.print(f"The server was up after {time.monotonic() - started:.0f} s, gRPC on {server.target}.")
            with EmbeddingClient(server.target) as client:
                show_neighbours(corpus, client.embed(corpus).embeddings)
                show_speed(corpus, client)
    except ServerEndedError as error:
        print(error, file=sys.stderr)
        return error.code
    if options.model is None:
        console.print(
            "This was the demo model: random weights without training. Its neighbours share words, not meaning."
        )
    console.print("The server is stopped. `make serve` keeps one running; `make demo MODEL=…` shows a real model.")
    return 0


def demo_model() -> str:
    """Folder of the demo model, made at the first run."""
    if not (DEMO_MODEL / "config.json").exists():
        command = [sys.executable, str(HERE / "model.py"), str(DEMO_MODEL)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return str(DEMO_MODEL)


def show_neighbours(corpus: list[str], vectors: np.ndarray) -> None:  # type: ignore[type-arg]
    """Cosine is the dot product: the vectors have length 1."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    table = Table(title=f"Nearest neighbours among {len(corpus)} sentences", title_justify="left")
    for column in ("sentence", "cosine", "nearest"):
        table.add_column(column, justify="right" if column == "cosine" else "left")
    for query in range(0, len(corpus), len(corpus) // QUERIES):
        nearest = np.argsort(-similarity[query])[:NEIGHBOURS]
        for rank, other in enumerate(nearest):
            table.add_row("" if rank else corpus[query], f"{similarity[query, other]:.3f}", corpus[other])
    console.print(table)


def show_speed(corpus: list[str], client: EmbeddingClient) -> None:
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
        f"one sentence alone takes {statistics.median(latencies) * 1000:.1f} ms (medians)."
    )


if __name__ == "__main__":
    sys.exit(main())
