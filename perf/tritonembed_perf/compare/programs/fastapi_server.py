"""The server that one writes around sentence-transformers: FastAPI, one endpoint, OpenAI's answer.

python fastapi_server.py --model FOLDER --dtype float32 --device cpu --port 8000
"""

import argparse
import base64
import threading
from typing import Any


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1, help="calls of encode at one time")
    parser.add_argument("--threads", type=int, help="of torch; by default one a core")
    options = parser.parse_args()

    import torch
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from sentence_transformers import SentenceTransformer

    if options.threads:
        torch.set_num_threads(options.threads)
    model = SentenceTransformer(
        options.model, device=options.device, model_kwargs={"dtype": getattr(torch, options.dtype)}
    )
    turns = threading.BoundedSemaphore(options.parallel)
    app = FastAPI()

    # Not async: FastAPI runs it in a thread, so that requests wait for the model and not for each other's JSON.
    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> JSONResponse:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        with turns:
            vectors = model.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True)
        rows = vectors.float().cpu().numpy()
        data = [
            {"object": "embedding", "index": index, "embedding": base64.b64encode(row.tobytes()).decode()}
            for index, row in enumerate(rows)
        ]
        return JSONResponse({"object": "list", "data": data, "model": "bench"})

    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
