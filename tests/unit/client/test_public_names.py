import subprocess
import sys
from importlib.resources import files

import tritonembed

IMPORTED = """
import sys
import numpy, tritonclient.grpc, tritonclient.grpc.service_pb2_grpc, grpc.aio
theirs = {name.partition(".")[0] for name in sys.modules}
import tritonembed
ours = {name.partition(".")[0] for name in sys.modules} - theirs - set(sys.stdlib_module_names)
print(*sorted(ours))
"""


def test_the_exported_names_are_these():
    assert tritonembed.__all__ == [
        "Activation",
        "AsyncEmbeddingClient",
        "AuthenticationError",
        "CancelledError",
        "ChunkResult",
        "DeadlineExceededError",
        "EmbeddingClient",
        "EmbeddingResult",
        "EmbeddingType",
        "InputType",
        "InvalidArgumentError",
        "ModelInfo",
        "ModelNotFoundError",
        "Output",
        "OverloadedError",
        "PolicyName",
        "Priority",
        "Ranking",
        "ScoreResult",
        "ServerError",
        "ServerInfo",
        "SparseVector",
        "TensorInfo",
        "TritonEmbedError",
        "Truncate",
        "UnavailableError",
        "maxsim",
    ]


def test_nothing_else_is_public():
    # The command, if a test imported it, and the modules that the manager shares.
    modules = {"cli", "inputs", "request"}
    public = {name for name in vars(tritonembed) if not name.startswith("_")}
    assert public - modules == set(tritonembed.__all__)


def test_the_module_of_public_classes_is_the_package():
    assert tritonembed.UnavailableError.__module__ == "tritonembed"


def test_importing_the_client_pulls_in_numpy_tritonclient_and_the_protocol_and_nothing_else():
    run = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["tritonembed", "tritonembed_protocol"]


def test_the_package_is_marked_as_typed():
    assert files("tritonembed").joinpath("py.typed").is_file()
