"""`make bench`: speed and memory on this machine, as ratios in one run.

    python -m tritonembed_perf.bench [--rounds 5] [--json FILE]

Three questions, BERT of 6 layers x 384 with random weights, sentences of exactly 50 tokens:

* sentences/s through gRPC and the ensemble, against sentence-transformers' `encode` in process (same cores, model and
  batch);
* the tokenizer stage's cost a sentence, against `tokenizers` called directly;
* memory of server and stubs (PSS and /dev/shm) after 10,000 requests of varied lengths, against after 1,000.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tokenizers import Tokenizer

from tritonembed_perf.exact_length import exact_length_texts
from tritonembed_perf.load import CONNECTION_OPTIONS, METHOD, Load, encode_request, run_load
from tritonembed_perf.machine import describe_command, describe_machine
from tritonembed_perf.memory import server_memory_mib
from tritonembed_perf.models import write_preset
from tritonembed_perf.output import output_file
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.termination import exit_on_sigterm

TOKENS, SENTENCES, CONCURRENCY = 50, 64, 4
EARLY, LATE = 1_000, 10_000


@exit_on_sigterm()
def main() -> None:
    """Print each result as it comes, and write all of them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of server and peer in turn; medians count")
    parser.add_argument("--dtype", default="float32", help="precision of the server")
    parser.add_argument("--peer-dtype", default="float32", help="precision of sentence-transformers")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the 10,000 requests")
    parser.add_argument("--json", type=output_file, help="write the results here")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": describe_machine(), "command": describe_command("bench")}
    print(f"machine: {results['machine']}")
    with tempfile.TemporaryDirectory() as folder:
        write_preset("bert-6x384", folder)
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        texts = exact_length_texts(tokenizer, TOKENS, SENTENCES * 8, seed=1)
        results["tokenizer"] = compare_tokenizer(folder, texts)
        with running_server(folder, ["--dtype", options.dtype]) as server:
            results["throughput"] = compare_throughput(server, folder, texts, options)
            if not options.skip_memory:
                results["memory"] = compare_memory(server, tokenizer)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def compare_throughput(server: RunningServer, folder: str, texts: list[str], options: Any) -> dict[str, Any]:
    """Server and peer in turn; the peer's threads sleep while the server works."""
    import torch
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": getattr(torch, options.peer_dtype)})
    batches = [texts[start : start + SENTENCES] for start in range(0, len(texts), SENTENCES)]
    payloads = [encode_request(batch) for batch in batches]
    peer.encode(batches[0], batch_size=SENTENCES)
    ours, theirs = [], []
    for _ in range(options.rounds):
        outcome = run_load(Load(server.target, payloads, CONCURRENCY, processes=1, seconds=6))
        if outcome.errors:
            raise SystemExit(f"requests failed: {outcome.errors}")
        ours.append(outcome.rate * SENTENCES)
        start = time.perf_counter()
        for batch in batches:
            peer.encode(batch, batch_size=SENTENCES, show_progress_bar=False)
        theirs.append(len(texts) / (time.perf_counter() - start))
    us, them = statistics.median(ours), statistics.median(theirs)
    load = f"{SENTENCES} x {TOKENS} tokens a request, {CONCURRENCY} at once, {options.dtype}"
    print(
        f"{load}: {us:,.0f} sentences/s ({us * TOKENS:,.0f} tokens/s) through Triton; "
        f"sentence-transformers in process, {options.peer_dtype}: {them:,.0f}: {us / them:.2f} x"
    )
    return {
        "dtype": options.dtype,
        "peer_dtype": options.peer_dtype,
        "ours": ours,
        "sentence_transformers": theirs,
        "ratio": us / them,
        "tokens_per_sentence": TOKENS,
    }


def compare_tokenizer(folder: str, texts: list[str]) -> dict[str, float]:
    """What the tokenizer model does for a request of 64 sentences, against the library it uses, in this process."""
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import DEFAULTS
    from tritonembed_engine.tokenizing import TextTokenizer

    ours = TextTokenizer(read_model_files(folder))
    library = Tokenizer.from_file(f"{folder}/tokenizer.json")
    batches = [texts[start : start + SENTENCES] for start in range(0, len(texts), SENTENCES)]
    spent: dict[str, list[float]] = {"ours": [], "library": []}
    for _ in range(5):
        for batch in batches:
            encoded = [text.encode() for text in batch]
            start = time.perf_counter()
            ours.encode_requests([(encoded, DEFAULTS)])
            middle = time.perf_counter()
            library.encode_batch_fast(batch)
            spent["ours"].append(middle - start)
            spent["library"].append(time.perf_counter() - middle)
    us, library_us = (statistics.median(spent[side]) / SENTENCES * 1e6 for side in ("ours", "library"))
    ratio = us / library_us
    print(f"tokenizer stage: {us:.1f} µs a sentence, tokenizers called directly {library_us:.1f}: {ratio:.2f} x")
    return {"microseconds": us, "library_microseconds": library_us, "ratio": ratio}


def compare_memory(server: RunningServer, tokenizer: Tokenizer) -> dict[str, float]:
    """Requests of 1 to 32 sentences of 3 to 117 tokens; memory at rest after EARLY and after LATE of them."""
    from tritonembed_engine.engine import REST_AFTER_S

    rng = np.random.default_rng(2)
    texts = [text for length in range(3, 120, 3) for text in exact_length_texts(tokenizer, length, 8, seed=length)]
    # Most are short, because 10,000 long ones would take two cores an hour.
    sizes = [*rng.integers(2, 33, 16).tolist(), *[1] * 400]
    payloads = [encode_request(rng.choice(texts, size).tolist()) for size in sizes]
    sent, memory = 0, {}
    for goal in (EARLY, LATE):
        sent += send(server, payloads, goal - sent)
        # Without work the engine hands cached memory back; what it keeps is what can grow.
        time.sleep(2 * REST_AFTER_S + 1)
        memory[goal] = server_memory_mib(server.process.pid)
    growth = memory[LATE] / memory[EARLY] - 1
    early, late = memory[EARLY], memory[LATE]
    print(f"memory: {early:,.0f} MiB after {EARLY:,} requests, {late:,.0f} after {LATE:,}: {growth:+.2%}")
    return {"early_mib": memory[EARLY], "late_mib": memory[LATE], "growth": growth}


def send(server: RunningServer, payloads: list[bytes], count: int) -> int:
    """So many requests, CONCURRENCY at once; how many were sent."""
    with grpc.insecure_channel(server.target, options=CONNECTION_OPTIONS) as channel:
        call = channel.unary_unary(METHOD, None, None)
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return sum(1 for _ in pool.map(lambda i: call(payloads[i % len(payloads)]), range(count)))


if __name__ == "__main__":
    main()
