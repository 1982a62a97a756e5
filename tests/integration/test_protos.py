"""Code that is generated from the shipped .proto file, without any library of Triton's, embeds on a real server."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tritonembed import EmbeddingClient
from tritonembed_perf.server import RunningServer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["first text", "naïve café 中文"]
PROGRAM = """
import sys
import grpc
import kserve_v2_pb2 as inference
import kserve_v2_pb2_grpc as service

texts = [text.encode() for text in sys.argv[2:]]
request = inference.ModelInferRequest(model_name="embedding")
text = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
text.contents.bytes_contents.extend(texts)
request.outputs.add(name="embedding")
request.parameters["input_type"].string_param = "query"
with grpc.insecure_channel(sys.argv[1]) as channel:
    client = service.GRPCInferenceServiceStub(channel)
    assert client.ServerReady(inference.ServerReadyRequest()).ready
    metadata = client.ModelMetadata(inference.ModelMetadataRequest(name="embedding"))
    assert [tensor.name for tensor in metadata.inputs] == ["text"]
    [answer] = client.ModelStreamInfer(iter([request]))
    unary = client.ModelInfer(request, timeout=60)
assert not answer.error_message
assert answer.infer_response.raw_output_contents == unary.raw_output_contents
assert not any(name.startswith("tritonclient") for name in sys.modules)
sys.stdout.buffer.write(unary.raw_output_contents[0])
"""


def test_generated_code_gets_the_vectors_of_the_client(
    server: RunningServer, client: EmbeddingClient, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}"]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*command, *outputs, "kserve_v2.proto"], check=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, tmp_path / "program.py", server.target, *TEXTS], capture_output=True, timeout=120
    )
    assert run.returncode == 0, run.stderr.decode()
    wanted = client.embed(TEXTS, input_type="query").embeddings
    rows = [row.tobytes() for row in wanted]
    assert run.stdout == b"".join(np.uint32(len(row)).tobytes() + row for row in rows)
