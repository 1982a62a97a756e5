"""The programs around sentence-transformers compute the right vectors, so that the measurement is of real work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_perf.compare.programs import sentence_transformers_main
from tritonembed_perf.loadgen.checks import embed_with_transformers
from tritonembed_perf.loadgen.protocols import OpenAIProtocol

TEXTS = ["a cat sits here", "and a dog", "one"]


def command(monkeypatch: pytest.MonkeyPatch, model: Path, *more: str) -> None:
    options = ["--model", str(model), "--dtype", "float32", "--device", "cpu", *more]
    monkeypatch.setattr("sys.argv", ["program", *options])


def test_in_a_program(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, job, vectors = shelf("bert"), tmp_path / "job.json", tmp_path / "vectors.npy"
    job.write_text(json.dumps({"texts": TEXTS, "seconds": 0.1, "warm_up": 0, "vectors": str(vectors)}))
    command(monkeypatch, model, "--batch-size", "2", "--job", str(job))
    sentence_transformers_main.main()
    said = json.loads(capsys.readouterr().out)
    assert said["calls"] == len(said["latencies"]) > 0
    assert said["seconds"] >= sum(said["latencies"])
    np.testing.assert_allclose(
        np.load(vectors), embed_with_transformers(read_model_files(str(model)), TEXTS), atol=1e-5
    )


def test_behind_http(shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **_: served.append(app))
    model = shelf("bert")
    command(monkeypatch, model, "--port", "1", "--parallel", "2")
    sentence_transformers_main.main()
    protocol = OpenAIProtocol("http://127.0.0.1", "bench")
    headers = {"Content-Type": "application/json"}
    answer = TestClient(served[0]).post("/v1/embeddings", content=protocol.encode(TEXTS), headers=headers)
    assert answer.status_code == 200
    found = protocol.decode(answer.content, len(TEXTS)).vectors
    np.testing.assert_allclose(found, embed_with_transformers(read_model_files(str(model)), TEXTS), atol=1e-5)
