"""How fast a reranker scores a query with many texts: the engine alone, the server, and sentence-transformers.

    python -m tritonembed_perf.scripts.rerank MODEL [--texts 100] [--tokens 256] [-- replica options]

Each round measures all of them in turn, so a busy machine slows all of them. The figures are tokens per second of the
pairs, as the server counts them, and ratios of medians.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from typer import Option

from tritonembed import EmbeddingClient
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import running_server

QUERY = "which of these words stands for a place where bread is baked?"
WORDS = ("bread", "river", "train", "quiet", "seven", "house", "green", "paper", "stone", "water")
ENGINE_AIM = 0.9
"""Of the engine's own rate, through the server."""
CLOSE = 2e-3
"""The largest difference of two scores in float32; in 16 bits ten times that."""


def rerank(
    model: Model,
    context: typer.Context,
    texts: Annotated[int, Option(min=1, help="Of a query.")] = 100,
    tokens: Annotated[int, Option(min=32, help="Of a pair, about.")] = 256,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, Option(min=1)] = 5,
) -> dict[str, Any]:
    """Tokens per second of reranking."""
    documents = _documents(texts, tokens)
    engine, dtype = _engine(model, device, documents)
    with running_server(model, ["--device", device, *context.args]) as server, EmbeddingClient(server.target) as client:
        served = client.score(QUERY, documents, batch_size=len(documents))
        count = int(served.num_tokens.sum())
        encoder, wanted = _cross_encoder(model, device, documents)
        off = float(np.abs(served.scores[:, 0] - wanted).max())
        if off > CLOSE * (1 if dtype == "float32" else 10):
            raise BenchError(f"a score differs by {off:.4f} from sentence-transformers'")
        ways: dict[str, Callable[[], object]] = {
            "engine": engine,
            "served": lambda: client.score(QUERY, documents, batch_size=len(documents)),
            "sentence-transformers": encoder,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    rates = {name: count / median(taken) for name, taken in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:12,.0f} tokens/s, median of {rounds}: {median(seconds[name]) * 1e3:,.0f} ms")
    of_engine, of_others = (rates["served"] / rates[name] for name in ("engine", "sentence-transformers"))
    print(
        f"{texts} texts, {count} tokens with their query, {dtype}: served {of_engine:.2f} x of the engine alone (aim: "
        f"{ENGINE_AIM:g}), {of_others:.2f} x sentence-transformers; scores differ by at most {off:.6f}"
    )
    return {"texts": texts, "tokens": count, "dtype": dtype, "seconds": seconds, "rates": rates, "off": off}


def _documents(count: int, tokens: int) -> list[str]:
    """Texts of about this many tokens with the query: each word is one token in most vocabularies."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, max(tokens - len(QUERY.split()) - 5, 1))) for _ in range(count)]


def _engine(model: str, device: str, documents: list[str]) -> tuple[Callable[[], object], str]:
    """One request through an engine in this process, tokenized before; and the type that it computes in."""
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None if device == "cpu" else "0")
    from tritonembed_engine.factory import create_engine
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.score_parameters import ScoreParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.pairs import PairTokenizer

    settings = ModelSettings.model_validate({"model": model, "engine": {"reference": "off"}})
    files = read_model_files(model)
    if files.classifier is None:
        raise BenchError(f"{files.name} is no reranker")
    engine = create_engine(settings, files, device)
    pairs = [text.encode() for text in documents], [QUERY.encode()] * len(documents), ScoreParameters()
    [ids] = PairTokenizer(files).encode_requests([pairs])
    if isinstance(ids, Exception):
        raise BenchError(str(ids))
    return lambda: engine.submit(ids).result(), engine.executor.dtype


def _cross_encoder(model: str, device: str, documents: list[str]) -> tuple[Callable[[], object], Any]:
    """sentence-transformers' own, at its best batch size for texts of one length, and its scores."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(model, device=device)
    pairs = [(QUERY, text) for text in documents]
    wanted = encoder.predict(pairs, show_progress_bar=False)
    return lambda: encoder.predict(pairs, show_progress_bar=False), wanted


if __name__ == "__main__":
    run_script("rerank", __doc__, rerank)
