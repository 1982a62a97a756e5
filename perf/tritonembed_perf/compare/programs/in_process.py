"""sentence-transformers in a program: encodes texts for a while and prints how fast it was.

    python in_process.py --model FOLDER --dtype float32 --device cpu --batch-size 64 JOB.json

The job: {"texts": […], "seconds": …, "warm_up": …, "vectors": PATH}. All texts are one call of `encode`, as often as
fits in the time. Prints {"calls", "seconds", "latencies", "cpu_seconds"} and writes the vectors of one call.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Load the model, warm up, encode, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("job", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text())

    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        options.model, device=options.device, model_kwargs={"dtype": getattr(torch, options.dtype)}
    )

    def encode() -> "np.ndarray":  # type: ignore[type-arg]
        return np.asarray(
            model.encode(job["texts"], batch_size=options.batch_size, show_progress_bar=False), dtype=np.float32
        )

    np.save(job["vectors"], encode())
    until = time.perf_counter() + job["warm_up"]
    while time.perf_counter() < until:
        encode()
    latencies = []
    began, cpu = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < began + job["seconds"]:
        encode()
        latencies.append(time.perf_counter() - now)
    print(
        json.dumps(
            {
                "calls": len(latencies),
                "seconds": time.perf_counter() - began,
                "latencies": latencies,
                "cpu_seconds": time.process_time() - cpu,
            }
        )
    )


if __name__ == "__main__":
    main()
