"""The embedding space of real servers: told with every answer, and another one refused, on every endpoint."""

import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.integration.serve import Serve
from tritonclient.utils import InferenceServerException

from tritonembed import EmbeddingClient, InvalidArgumentError
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.settings import ModelSettings
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_perf.server import RunningServer

HEADER = "x-embedding-space"
COMMAND = str(Path(sys.executable).with_name("tritonembed"))
OTHER = "000000000000-float32"
REFUSAL = "embedding_space: the vectors here are of the space "


@pytest.fixture(scope="module")
def space(model: Path) -> str:
    """The space of the shared servers' model, as computed here."""
    return embedding_space(ModelSettings(model=str(model)), read_model_files(str(model)), "float32")


def tensor(kind: Any) -> Any:
    made = kind.InferInput("text", [1, 1], "BYTES")
    made.set_data_from_numpy(np.array([[b"a text"]], dtype=np.object_))
    return made


def test_a_bare_server_tells_its_space_and_refuses_another(server: RunningServer, space: str) -> None:
    with EmbeddingClient(server.target) as client:
        assert client.info().embedding_space == space
        assert client.embed(["a text"]).embedding_space == space
        assert client.embed(["a text"] * 70).embedding_space == space
        assert client.embed_chunks(["a text"]).embedding_space == space
        assert client.embed(["a text"], embedding_space=space).embedding_space == space
        assert client.embed_chunks(["a text"], embedding_space=space).embedding_space == space
        for embed in (client.embed, client.embed_chunks):
            with pytest.raises(InvalidArgumentError, match=f"{REFUSAL}{space}, not of the one that is asked for"):
                embed(["a text"], embedding_space=OTHER)
    # Triton's own client, without a word of ours but the parameter.
    with tritonclient.grpc.InferenceServerClient(server.target) as plain:
        with pytest.raises(InferenceServerException, match=REFUSAL) as refused:
            plain.infer("embedding", [tensor(tritonclient.grpc)], parameters={"embedding_space": OTHER})
        assert "INVALID_ARGUMENT" in str(refused.value.status())
        ids = tritonclient.grpc.InferInput("token_ids", [2, 1], "BYTES")
        ids.set_data_from_numpy(np.array([[bytes(4)], [bytes(4)]], dtype=np.object_))
        outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in ("embedding", "embedding_space")]
        answer = plain.infer("embedder", [ids], outputs=outputs)
        assert answer.as_numpy("embedding_space").tolist() == [[space.encode()]] * 2
        assert answer.as_numpy("embedding").shape == (2, 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30) as metrics:
        assert f'embedding_space="{space}"' in metrics.read().decode()


def test_answers_of_a_manager_have_the_space_on_every_endpoint(manager: Serve, space: str) -> None:
    with EmbeddingClient(manager.target) as client:
        assert client.embed(["a text"] * 70).embedding_space == space
        assert client.embed_chunks(["a text"]).embedding_space == space
        assert client.info().embedding_space == space
    with grpc.insecure_channel(manager.target) as channel:
        encode = channel.unary_unary(
            "/arctic_inference.InferenceService/Encode",
            arctic.EncodeRequest.SerializeToString,
            arctic.EncodeResponse.FromString,
        )
        request = arctic.EncodeRequest(prompts=["a text"], n_prompts=1)
        _, call = encode.with_call(request, timeout=60)
        assert dict(call.trailing_metadata())[HEADER] == space
        refused = encode(request, metadata=[(HEADER, OTHER)], timeout=60)
        assert refused.error.startswith(f"{REFUSAL}{space}")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{manager.http_port}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.with_raw_response.create(model="", input="a text")
        assert answer.headers[HEADER] == space
        for asked in ({"extra_body": {"embedding_space": OTHER}}, {"extra_headers": {HEADER: OTHER}}):
            with pytest.raises(openai.BadRequestError, match=f"{REFUSAL}{space}"):
                client.embeddings.create(model="", input="a text", **asked)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{manager.http_port}") as http:
        found = http.infer("embedding", [tensor(tritonclient.http)])
        assert found.get_response()["parameters"]["embedding_space"] == space
        with pytest.raises(InferenceServerException, match=REFUSAL):
            http.infer("embedding", [tensor(tritonclient.http)], parameters={"embedding_space": OTHER})


def test_the_commands_show_the_space_and_refuse_another(manager: Serve, space: str, tmp_path: Path) -> None:
    at = ["--host", "127.0.0.1", "--port", str(manager.port)]
    embed = [COMMAND, "embed", *at, "a text", "--output", str(tmp_path / "out.npy")]
    asked = subprocess.run([*embed, "--embedding-space", space], capture_output=True, text=True, timeout=60)
    assert (asked.returncode, f"embedding space {space}" in asked.stderr) == (0, True)
    refused = subprocess.run(
        [*embed, "--force", "--embedding-space", OTHER], capture_output=True, text=True, timeout=60
    )
    assert (refused.returncode, f"{REFUSAL}{space}" in refused.stderr) == (1, True)
    shown = subprocess.run(
        [sys.executable, "-m", "tritonembed_manager", "status", "--manager", f"127.0.0.1:{manager.http_port}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"embedding space {space}\n" in shown.stdout
    assert [server["space"] for server in manager.status()["servers"]] == [space]
