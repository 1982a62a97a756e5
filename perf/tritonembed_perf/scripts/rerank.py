"""How fast a reranker scores a query with many texts: the engine alone, the server, and other systems.

    python -m tritonembed_perf.scripts.rerank MODEL [--texts 100] [--tokens 256] [--at-once 4] [-- replica options]

All servers run at the same time. Each round measures them in turn while the others are idle, so a busy machine slows
all of them. The figures are tokens per second of the pairs, as our server counts them, and ratios of medians.
"""

import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from typer import Option

from tritonembed import EmbeddingClient
from tritonembed_perf.compare.launching import launched
from tritonembed_perf.compare.peer import Bench, find_python, parse_pythons
from tritonembed_perf.compare.peers import ENVIRONMENTS, INFINITY, SERVED_NAME, all_peers
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.loadgen.protocols import HttpSender, WrongAnswerError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import free_ports, running_server

QUERY = "which of these words stands for a place where bread is baked?"
WORDS = ("bread", "river", "train", "quiet", "seven", "house", "green", "paper", "stone", "water")
ENGINE_AIM = 0.9
"""The aim for the rate through the server: at least this share of the engine's own."""
PEER_AIM = 3.0
"""The aim for the rate on a GPU, as a multiple of another server's."""
CLOSE = 2e-3
"""The largest allowed difference of two scores in float32; in 16 bits, ten times as much is allowed."""
HELD = 16
"""The number of pairs whose scores are compared with transformers'."""
ANSWER_LIMIT_S = 300.0

Scores = npt.NDArray[np.float32]


def rerank(
    model: Model,
    context: typer.Context,
    texts: Annotated[int, Option(min=1, help="Texts per query.")] = 100,
    tokens: Annotated[int, Option(min=32, help="Tokens per pair, about.")] = 256,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, Option(min=1)] = 5,
    at_once: Annotated[int, Option(min=1, help="Requests in flight.")] = 1,
    requests_per_round: Annotated[int, Option("--requests", min=1, help="Requests per round and system.")] = 1,
    peers: Annotated[str, Option(help="sentence-transformers, vllm-serve, infinity-emb; with commas.")] = "",
    python: Annotated[list[str], Option(help="PEER=PATH: another Python for that system.")] = [],  # noqa: B006
) -> dict[str, Any]:
    """Tokens per second of reranking."""
    documents = _documents(texts, tokens)
    wanted, dtype = _reference(model, device, documents[:HELD])
    engine, computes_in = _engine(model, device, documents)
    close = CLOSE * (1 if computes_in == "float32" else 10)
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_server(model, ["--device", device, *context.args]))
        client = stack.enter_context(EmbeddingClient(server.target))
        served = client.score(QUERY, documents, batch_size=len(documents))
        ways: dict[str, Callable[[], Scores]] = {
            "engine": engine,
            "served": lambda: client.score(QUERY, documents, batch_size=len(documents)).scores[:, 0],
        }
        bench = Bench(Path(model), dtype, device, 0, work, parse_pythons(python, ENVIRONMENTS))
        for name in filter(None, peers.split(",")):
            if name not in PEERS:
                raise UsageError(f"--peers: {name!r} is none of {', '.join(PEERS)}")
            ways[name] = stack.enter_context(PEERS[name](bench, documents))
        off = {name: float(np.abs(_first(way()) - wanted).max()) for name, way in ways.items()}
        for name, difference in off.items():
            if difference > close:
                raise BenchError(f"a score of {name} differs by {difference:.4f} from transformers'")
        rows = _measure(ways, pool, rounds, requests_per_round, at_once)
    count = int(served.num_tokens.sum())
    rates = {name: requests_per_round * count / median(taken) for name, taken in rows.items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:12,.0f} tokens/s, median of {rounds}; served has {rates['served'] / rate:.2f} x")
    print(
        f"{texts} texts, {count} tokens with their query, {at_once} at once, {computes_in}; aims: {ENGINE_AIM:g} of "
        f"the engine, {PEER_AIM:g} x another server on a GPU; scores differ by at most {max(off.values()):.6f}"
    )
    settings = {"texts": texts, "tokens": count, "at_once": at_once, "requests": requests_per_round}
    return {**settings, "dtype": computes_in, "seconds": rows, "rates": rates, "off": off}


def _first(scores: Scores) -> Scores:
    return np.asarray(scores, np.float32)[:HELD]


def _measure(
    ways: dict[str, Callable[[], Scores]], pool: ThreadPoolExecutor, rounds: int, count: int, at_once: int
) -> dict[str, list[float]]:
    """Seconds of `count` requests, by way and round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            # In process it takes all texts at once by itself.
            workers = map if name == "sentence-transformers" or at_once == 1 else pool.map
            for _ in workers(lambda way: way(), [run] * count):
                pass
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _documents(count: int, tokens: int) -> list[str]:
    """Texts of about this many tokens with the query: each word is one token in most vocabularies."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, max(tokens - len(QUERY.split()) - 5, 1))) for _ in range(count)]


def _reference(model: str, device: str, documents: list[str]) -> tuple[Scores, str]:
    """Probabilities by transformers in float32, and the name of the type that servers compute in."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).to(device).eval()
    inputs = tokenizer([QUERY] * len(documents), documents, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        scores: Scores = torch.sigmoid(loaded(**inputs.to(device)).logits[:, 0]).cpu().numpy()
    return scores, "bfloat16" if device == "cuda" else "float32"


def _engine(model: str, device: str, documents: list[str]) -> tuple[Callable[[], Scores], str]:
    """One request through an engine in this process, tokenized before; and the type that it computes in."""
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None if device == "cpu" else "0")
    from tritonembed_engine.factory import create_engine
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.scores import ScoreParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.pairs import PairTokenizer

    vllm = {"gpu_memory_utilization": 0.1} if device == "cuda" else {}
    settings = ModelSettings.model_validate({"model": model, "vllm": vllm, "engine": {"reference": "off"}})
    files = read_model_files(model)
    if files.classifier is None:
        raise BenchError(f"{files.name} is no reranker")
    engine = create_engine(settings, files, device)
    pairs = [text.encode() for text in documents], [QUERY.encode()] * len(documents), ScoreParameters()
    [ids] = PairTokenizer(files).encode_requests([pairs])
    if isinstance(ids, Exception):
        raise BenchError(str(ids))

    def run() -> Scores:
        logits: Scores = np.asarray(engine.submit(ids).result(), np.float32)[:, 0]
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    return run, engine.executor.dtype


@contextmanager
def _cross_encoder(bench: Bench, documents: list[str]) -> Iterator[Callable[[], Scores]]:
    """sentence-transformers' own in this process, at its best batch size for texts of one length."""
    import torch
    from sentence_transformers import CrossEncoder

    dtype = {"dtype": getattr(torch, bench.dtype)}
    encoder = CrossEncoder(str(bench.model), device=bench.device, model_kwargs=dtype)
    pairs = [(QUERY, text) for text in documents]
    yield lambda: encoder.predict(pairs, show_progress_bar=False)


@dataclass(frozen=True)
class _Scoring:
    """The requests of another server, and the names of the fields in them and in a row of the results."""

    url: str
    texts_field: str
    query_field: str
    results: str
    score: str

    def sender(self) -> HttpSender:
        return HttpSender(self.url)

    def encode(self, texts: Sequence[str]) -> bytes:
        body = {"model": SERVED_NAME, self.query_field: QUERY, self.texts_field: list(texts)}
        return json.dumps(body).encode()

    def decode(self, answer: bytes, sentences: int) -> Scores:
        try:
            found = json.loads(answer)[self.results]
            by_index = {row["index"]: row[self.score] for row in found}
            return np.array([by_index[index] for index in range(sentences)], np.float32)
        except (ValueError, KeyError, TypeError):
            raise WrongAnswerError("the answer can't be read as scores") from None


@contextmanager
def _vllm(bench: Bench, documents: list[str]) -> Iterator[Callable[[], Scores]]:
    """vLLM's `/score`. It answers with probabilities."""
    peer = all_peers()["vllm-serve"]
    peer.prepare(bench)
    command = ["--disable-uvicorn-access-log"] + (["--gpu-memory-utilization", "0.3"] if bench.on_gpu else [])
    variables = {} if bench.on_gpu else {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with _other(bench, peer.command, command, peer.python, variables, ("score", "text_2", "text_1", "data", "score"),
                documents) as run:  # fmt: skip
        yield run


@contextmanager
def _infinity(bench: Bench, documents: list[str]) -> Iterator[Callable[[], Scores]]:
    """Infinity's `/rerank`. It answers with probabilities, the best first."""
    peer = all_peers()["infinity-emb"]
    python, _ = find_python(bench, INFINITY)
    fields = ("v1/rerank", "documents", "query", "results", "relevance_score")
    with _other(bench, peer.command, ["--batch-size", "128"], python, peer.variables, fields, documents) as run:
        yield run


@contextmanager
def _other(
    bench: Bench,
    command: Sequence[str],
    more: Sequence[str],
    python: str,
    variables: dict[str, str],
    fields: tuple[str, str, str, str, str],
    documents: list[str],
) -> Iterator[Callable[[], Scores]]:
    [port] = free_ports(1)
    path, *names = fields
    scoring = _Scoring(f"http://127.0.0.1:{port}/{path}", *names)
    filled = {"python": python, "port": port, "model": bench.model, "dtype": bench.dtype, "device": bench.device}
    words = [word.format_map(filled) for word in command]
    payload = scoring.encode(documents)

    def run() -> Scores:
        request = urllib.request.Request(scoring.url, payload, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
            return scoring.decode(answer.read(), len(documents))

    with launched([*words, *more], variables, scoring, bench.work / f"{port}.log"):
        yield run


PEERS = {"sentence-transformers": _cross_encoder, "vllm-serve": _vllm, "infinity-emb": _infinity}

if __name__ == "__main__":
    run_script("rerank", __doc__, rerank)
