"""The two sides of `make bench-quick`: the ensemble over gRPC, and sentence-transformers in this process."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from tritonembed_perf.exact_length import exact_length_texts
from tritonembed_perf.run.checks import AnswerCheck
from tritonembed_perf.run.clients import Interrupt, Watcher, run_clients
from tritonembed_perf.run.corpus import PooledRequest, make_requests
from tritonembed_perf.run.job import Load, Work
from tritonembed_perf.run.kserve import KServe
from tritonembed_perf.run.reference import make_references
from tritonembed_perf.server import RunningServer
from tritonembed_perf.shape_load import ShapeLoad

DIMENSIONS = 384
MIN_COSINE = 0.999
ROUNDS = 5
FEWEST_ROUNDS = 2
"""Also where the time is over: of one alone nobody can tell whether it was disturbed."""
SECONDS = 3.0
WARM_UP_S = 0.5
TIMEOUT_S = 60.0
TEXTS = 512


def measure(server: RunningServer, folder: str, load: ShapeLoad, until: float) -> dict[str, Any]:
    """Both sides in turn on the same requests: sentences a second of each round, and the ratio of their best ones.

    until: the moment, on the monotonic clock, by which no further round may end.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    texts = exact_length_texts(tokenizer, load.tokens, TEXTS, seed=1)
    requests = make_requests(texts, [load.tokens] * TEXTS, load.sentences)
    references = make_references(requests, lambda some: peer.encode(list(some), show_progress_bar=False))
    check = AnswerCheck(DIMENSIONS, True, MIN_COSINE, references, tuple(request.tokens for request in requests))
    protocol = KServe(server.target)
    payloads = tuple(protocol.encode(request.texts) for request in requests)
    work = Work(protocol, payloads, load.sentences, check.tokens or (), check)
    # Work of about so many seconds, the same in all rounds: a window of time would cut through batches.
    speed = _encode(peer, requests, load.concurrency)
    count = load.concurrency * max(2, round(SECONDS * speed / load.sentences / load.concurrency))
    ours, theirs = [], []
    for _ in rounds(until):
        ours.append(_ask(work, load.concurrency, count))
        theirs.append(_encode(peer, requests, count))
    # Whatever else runs on the machine makes rounds slower, never faster: the best one was disturbed least.
    us, them = max(ours), max(theirs)
    ratio = us / them
    print(
        f"{load.name}: {us:,.0f} sentences/s through Triton, "
        f"sentence-transformers in process {them:,.0f}: {ratio:.2f} x (best of {len(ours)} rounds)",
        flush=True,
    )
    return {"load": load.name, "requests": count, "ours": ours, "sentence_transformers": theirs, "ratio": ratio}


def rounds(until: float) -> Iterator[int]:
    """The numbers of the rounds: as many as end in time when they take what the longest one took."""
    longest = 0.0
    for number in range(ROUNDS):
        began = time.monotonic()
        if number >= FEWEST_ROUNDS and began + longest > until:
            return
        yield number
        longest = max(longest, time.monotonic() - began)


def _ask(work: Work, concurrency: int, count: int) -> float:
    """Sentences a second of so many requests."""
    load = Load(concurrency, None, count, None, WARM_UP_S, TIMEOUT_S, seed=0)
    outcome = run_clients(work, load, 1, Watcher(), Interrupt())
    if outcome.part.errors or outcome.part.wrong:
        raise SystemExit(f"requests failed: {outcome.part.errors}; wrong vectors: {outcome.part.faults}")
    return outcome.requests_per_second * work.sentences


def _encode(peer: Any, requests: Sequence[PooledRequest], count: int) -> float:
    """Sentences a second of so many requests, one after the other."""
    sentences = len(requests[0].texts)
    start = time.perf_counter()
    for number in range(count):
        texts = list(requests[number % len(requests)].texts)
        peer.encode(texts, batch_size=sentences, show_progress_bar=False)
    return count * sentences / (time.perf_counter() - start)
