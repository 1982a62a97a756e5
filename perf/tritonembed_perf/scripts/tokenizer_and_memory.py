"""What `bench full` measures besides speed: the tokenizer stage against its library, and memory over many requests."""

import time

import numpy as np
from tokenizers import Tokenizer

from tritonembed_engine.engine import REST_AFTER_S
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import DEFAULTS
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.kserve import GrpcSender, encode_request
from tritonembed_manager.tune.loadgen.load import Load, Work
from tritonembed_manager.tune.loads import exact_length_texts
from tritonembed_perf.failures import BenchError
from tritonembed_perf.server import RunningServer, server_memory_mib

TOKENS, SENTENCES, BATCHES, REPEAT = 50, 64, 8, 5
AT_ONCE = 4
EARLY, LATE = 1_000, 10_000


def compare_tokenizer(folder: str, library: Tokenizer) -> dict[str, float]:
    """The tokenizer model's work for a request of SENTENCES, against the library it uses, in this process."""
    ours = TextTokenizer(read_model_files(folder))
    texts = exact_length_texts(library, TOKENS, SENTENCES * BATCHES, seed=1)
    spent = []
    for start in [*range(0, len(texts), SENTENCES)] * REPEAT:
        batch = texts[start : start + SENTENCES]
        encoded = [text.encode() for text in batch]
        began = time.perf_counter()
        ours.encode_requests([(encoded, DEFAULTS)])
        middle = time.perf_counter()
        library.encode_batch_fast(batch)
        spent.append((middle - began, time.perf_counter() - middle))
    us, library_us = (np.median(spent, axis=0) / SENTENCES * 1e6).tolist()
    ratio = us / library_us
    print(f"tokenizer stage: {us:.1f} µs per sentence, tokenizers called directly {library_us:.1f}: {ratio:.2f} x")
    return {"microseconds": us, "library_microseconds": library_us, "ratio": ratio}


def compare_memory(server: RunningServer, tokenizer: Tokenizer) -> dict[str, float]:
    """Memory of server and stubs at rest, after EARLY and after LATE requests of varied sizes and lengths."""
    rng = np.random.default_rng(2)
    texts = [text for length in range(3, 120, 3) for text in exact_length_texts(tokenizer, length, 8, seed=length)]
    # Most are short, because 10,000 long ones would take two cores an hour.
    sizes = [*rng.integers(2, 33, 16).tolist(), *[1] * 400]
    work = Work(GrpcSender(server.target), [encode_request(rng.choice(texts, size).tolist()) for size in sizes])
    memory = []
    for count in (EARLY, LATE - EARLY):
        errors = run_clients(work, Load(AT_ONCE, None, count, None, 0, TIMEOUT_S, 0), 1).part.errors
        if errors:
            raise BenchError(f"requests failed: {errors}")
        # Without work the engine returns cached memory; what it keeps is what can grow.
        time.sleep(2 * REST_AFTER_S + 1)
        memory.append(server_memory_mib(server.process.pid))
    early, late = memory
    growth = late / early - 1
    print(f"memory: {early:,.0f} MiB after {EARLY:,} requests, {late:,.0f} after {LATE:,}: {growth:+.2%}")
    return {"early_mib": early, "late_mib": late, "growth": growth}
