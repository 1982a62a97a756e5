"""sentence-transformers in the peer's own environment: encodes texts for a while, or serves them over HTTP.

    python sentence_transformers_main.py --model FOLDER --dtype float32 --device cpu --batch-size 64 --job JOB.json
    python sentence_transformers_main.py --model FOLDER --dtype float32 --device cpu --port 8000

The job: {"texts": […], "seconds": …, "warm_up": …, "vectors": PATH}. All texts are one call of `encode`, as often as
fits in the time. Prints {"calls", "seconds", "latencies"} and writes the vectors of one call. The server is one that
people write around the library: FastAPI, one endpoint, OpenAI's answer.
"""

import argparse
import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Load the model, then do the job or serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--model", "--dtype", "--device"):
        parser.add_argument(name, required=True)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--port", type=int)
    parser.add_argument("--parallel", type=int, default=1, help="calls of encode at one time")
    parser.add_argument("--threads", type=int, help="of torch; by default one per core")
    options = parser.parse_args()

    import torch
    from sentence_transformers import SentenceTransformer

    if options.threads:
        torch.set_num_threads(options.threads)
    weights = {"dtype": getattr(torch, options.dtype)}
    model = SentenceTransformer(options.model, device=options.device, model_kwargs=weights)
    if options.job:
        work_off(model, json.loads(options.job.read_text()), options.batch_size)
    else:
        serve(model, options.port, options.parallel)


def work_off(model: Any, job: dict[str, Any], batch_size: int) -> None:
    """Warm up, encode, report."""

    def encode() -> float:
        began = time.perf_counter()
        model.encode(job["texts"], batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - began

    np.save(job["vectors"], model.encode(job["texts"], batch_size=batch_size).astype(np.float32))
    until = time.perf_counter() + job["warm_up"]
    while time.perf_counter() < until:
        encode()
    latencies = []
    began = time.perf_counter()
    while time.perf_counter() < began + job["seconds"]:
        latencies.append(encode())
    seconds = time.perf_counter() - began
    print(json.dumps({"calls": len(latencies), "seconds": seconds, "latencies": latencies}))


def serve(model: Any, port: int, parallel: int) -> None:
    """Serve until the process is stopped."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    turns = threading.BoundedSemaphore(parallel)
    app = FastAPI()

    # Not async: FastAPI runs it in a thread, so that requests wait for the model and not for each other's JSON.
    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> JSONResponse:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        with turns:
            vectors = model.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True)
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors.float().cpu().numpy()]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        return JSONResponse({"object": "list", "data": data, "model": "bench"})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
