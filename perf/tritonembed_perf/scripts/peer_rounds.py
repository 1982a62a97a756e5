"""The ensemble over gRPC and sentence-transformers in this process, in turn, on the same requests."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.load import Load, Work
from tritonembed_manager.tune.loads import LoadShape, exact_length_texts
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.answers import AnswerCheck, make_references, min_cosine
from tritonembed_perf.loadgen.grpc_protocols import KServe
from tritonembed_perf.loadgen.protocol import make_work
from tritonembed_perf.loadgen.requests import PooledRequest, make_requests

MOST_ROUNDS, FEWEST_ROUNDS = 5, 2
"""A single round can't show whether it was disturbed, so there are two even if the time is over."""
WARM_UP_S = 0.5
TEXTS = 512


@dataclass(frozen=True)
class Peer:
    """sentence-transformers on this CPU. dtype: of its weights."""

    model: Any
    dtype: str
    files: ModelFiles
    tokenizer: Tokenizer

    @staticmethod
    def load(folder: str, dtype: str) -> "Peer":
        """Takes seconds."""
        import torch
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        return Peer(model, dtype, read_model_files(folder), Tokenizer.from_file(f"{folder}/tokenizer.json"))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One call of `encode`, as one batch."""
        found: npt.NDArray[np.float32] = self.model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return found

    def speed(self, requests: Sequence[PooledRequest], count: int) -> float:
        """Sentences per second of `count` requests, one after the other."""
        start = time.perf_counter()
        for number in range(count):
            self.embed(requests[number % len(requests)].texts)
        return count * len(requests[0].texts) / (time.perf_counter() - start)


def measure_both(
    server: str,
    peer: Peer,
    load: LoadShape,
    turns: Iterable[int],
    typical: Callable[[list[float]], Any],
    seconds: float,
    dtype: str,
) -> dict[str, Any]:
    """Sentences per second of each round of both sides, and the ratio of their typical rounds.

    server: host:port. turns: one round each. typical: of the figures of all rounds. seconds: about how long the peer
    takes in a round; it encodes the same requests one after the other. dtype: the server's.
    """
    texts = exact_length_texts(peer.tokenizer, load.tokens, TEXTS, seed=1)
    requests = make_requests(texts, [load.tokens] * TEXTS, load.sentences)
    least = min(min_cosine(dtype), min_cosine(peer.dtype))
    tokens = tuple(request.tokens for request in requests)
    references = make_references(requests, peer.embed)
    check = AnswerCheck(peer.files.dimensions, peer.files.normalize, least, references, tokens)
    work = make_work(KServe(server), requests, check)
    # The same work in all rounds, not the same time: a window of time would cut through batches.
    speed = peer.speed(requests, -(-load.at_once // 4))
    count = load.at_once * max(2, round(seconds * speed / load.sentences / load.at_once))
    ours, theirs = [], []
    for _ in turns:
        ours.append(_request(work, load, count))
        theirs.append(peer.speed(requests, count))
    us, them = float(typical(ours)), float(typical(theirs))
    print(
        f"{load}, {dtype}: {us:,.0f} sentences/s ({us * load.tokens:,.0f} tokens/s) through Triton; "
        f"sentence-transformers in process, {peer.dtype}: {them:,.0f}: {us / them:.2f} x "
        f"({'best' if typical is max else 'median'} of {len(ours)} rounds)",
        flush=True,
    )
    return {
        "load": str(load),
        "dtype": dtype,
        "peer_dtype": peer.dtype,
        "requests": count,
        "ours": ours,
        "sentence_transformers": theirs,
        "ratio": us / them,
    }


def rounds(until: float) -> Iterator[int]:
    """As many rounds as end by `until`, on the monotonic clock, if they take what the longest one took."""
    longest = 0.0
    for number in range(MOST_ROUNDS):
        began = time.monotonic()
        if number >= FEWEST_ROUNDS and began + longest > until:
            return
        yield number
        longest = max(longest, time.monotonic() - began)


def _request(work: Work, load: LoadShape, count: int) -> float:
    """Sentences per second of `count` requests to the server."""
    outcome = run_clients(work, Load(load.at_once, None, count, None, WARM_UP_S, TIMEOUT_S, seed=0), 1)
    if outcome.part.errors or outcome.part.wrong:
        raise BenchError(f"requests failed: {outcome.part.errors}; wrong vectors: {outcome.part.faults}")
    return outcome.requests_per_second * load.sentences
