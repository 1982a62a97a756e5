"""`make bench-quick`: has this project become slower? Under three minutes on two cores.

    python -m tritonembed_perf.quick [--update]

Requests through gRPC and the ensemble against sentence-transformers' `encode` in this process: same machine, model,
texts and precision, in turn, so that a busy machine slows both. Ratios are compared with those in
results/quick-baseline.json; exit code 1 when one of them is more than 20 % lower.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tritonembed_perf.exact_length import exact_length_texts
from tritonembed_perf.load import Load, encode_request, run_load
from tritonembed_perf.models import write_preset
from tritonembed_perf.run.environment import describe_environment, machine_line
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.shape_load import ShapeLoad

BASELINE = Path(__file__).resolve().parents[1] / "results" / "quick-baseline.json"
ALLOWED_DROP = 0.20
MODEL = "bert-6x384"
ROUNDS = 4
SECONDS = 4.0
TEXTS = 512


LOADS = (ShapeLoad(50, 64, 4), ShapeLoad(50, 1, 16))
"""The peer encodes the same requests one after the other, as it does in a program."""


def main() -> None:
    """Measure, print, compare; exit code 1 for a drop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the ratios as the new baseline")
    options = parser.parse_args()
    environment = describe_environment(["python", "-m", "tritonembed_perf.quick", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        write_preset(MODEL, folder)
        with running_server(folder, ["--device", "cpu", "--dtype", "float32"]) as server:
            rows = [measure(server, folder, load) for load in LOADS]
    print(f"{time.monotonic() - began:.0f} s")
    ratios = {row["load"]: row["ratio"] for row in rows}
    if options.update:
        BASELINE.write_text(json.dumps({**environment, "ratios": ratios, "rows": rows}, indent=1) + "\n")
        print(f"wrote {BASELINE.name}")
        return
    committed = json.loads(BASELINE.read_text())["ratios"] if BASELINE.exists() else {}
    dropped = find_drops(ratios, committed)
    for line in dropped:
        print(line)
    sys.exit(1 if dropped else 0)


def measure(server: RunningServer, folder: str, load: ShapeLoad) -> dict[str, Any]:
    """Both sides in turn; sentences a second of each round and the median of the rounds' ratios."""
    import torch
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    texts = exact_length_texts(Tokenizer.from_file(f"{folder}/tokenizer.json"), load.tokens, TEXTS, seed=1)
    batches = [texts[start : start + load.sentences] for start in range(0, TEXTS, load.sentences)]
    payloads = [encode_request(batch) for batch in batches]
    peer.encode(batches[0], batch_size=load.sentences)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        outcome = run_load(Load(server.target, payloads, load.concurrency, processes=1, seconds=SECONDS))
        if outcome.errors:
            raise SystemExit(f"requests failed: {outcome.errors}")
        ours.append(outcome.rate * load.sentences)
        theirs.append(_encode_for(peer, batches, SECONDS))
    ratio = statistics.median(us / them for us, them in zip(ours, theirs, strict=True))
    print(
        f"{load.name}: {statistics.median(ours):,.0f} sentences/s through Triton, sentence-transformers in process "
        f"{statistics.median(theirs):,.0f}: {ratio:.2f} x",
        flush=True,
    )
    return {"load": load.name, "ours": ours, "sentence_transformers": theirs, "ratio": ratio}


def find_drops(ratios: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is more than ALLOWED_DROP below the committed one."""
    return [
        f"{name}: {ratio:.2f} x is {1 - ratio / committed[name]:.0%} below the committed {committed[name]:.2f} x"
        for name, ratio in ratios.items()
        if name in committed and ratio < committed[name] * (1 - ALLOWED_DROP)
    ]


def _encode_for(peer: Any, batches: list[list[str]], seconds: float) -> float:
    """Sentences a second."""
    start = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - start) < seconds:
        batch = batches[(done // len(batches[0])) % len(batches)]
        peer.encode(batch, batch_size=len(batch), show_progress_bar=False)
        done += len(batch)
    return done / spent


if __name__ == "__main__":
    main()
