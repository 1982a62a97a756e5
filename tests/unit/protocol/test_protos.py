"""The .proto files for other languages: the messages are Triton's, and the programs of the documentation use them."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import service_pb2

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/guides/go-and-java.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The FileDescriptorProto of kserve_v2.proto."""
    out = tmp_path_factory.mktemp("protos") / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}"]
    subprocess.run([*command, f"--descriptor_set_out={out}", "kserve_v2.proto"], check=True)
    [file] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return file


@pytest.fixture(scope="module")
def tritons() -> Any:
    file = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def by_name(things: Any) -> dict[str, Any]:
    return {thing.name: thing for thing in things}


def plain(message: Any) -> Any:
    """Without the names in JSON, which compilers derive."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        plain(nested)
    return message


def test_every_message_and_call_is_tritons(ours: Any, tritons: Any) -> None:
    assert ours.package == tritons.package
    messages = by_name(tritons.message_type)
    assert {"ModelInferRequest", "ModelInferResponse", "InferParameter"} <= by_name(ours.message_type).keys()
    for message in ours.message_type:
        assert plain(message) == plain(messages[message.name])
    [service], [whole] = ours.service, tritons.service
    assert service.name == whole.name
    calls = by_name(whole.method)
    for call in service.method:
        theirs = calls[call.name]
        for field in ("input_type", "output_type", "client_streaming", "server_streaming"):
            assert getattr(call, field) == getattr(theirs, field)


def messages_of(nested: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every message, by its names joined with dots."""
    for message in nested:
        name = f"{before}{message.name}"
        yield name, message
        yield from messages_of(message.nested_type, f"{name}.")


def program(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def test_the_program_in_go_uses_names_that_the_generated_code_has(ours: Any) -> None:
    known, fields = {"GRPCInferenceServiceClient", "NewGRPCInferenceServiceClient"}, {"ParameterChoice"}
    for name, message in messages_of(ours.message_type):
        go = name.replace(".", "_")
        known.add(go)
        known |= {f"{go}_{camel(field.name)}" for field in message.field if field.HasField("oneof_index")}
        fields |= {camel(field.name) for field in message.field}
    source = program("go")
    used = set(re.findall(r"\binference\.(\w+)", source))
    assert {"ModelInferRequest", "InferParameter_StringParam"} <= used <= known
    literals = set(re.findall(r"\b([A-Z]\w+):\s", source))
    assert {"ModelName", "BytesContents"} <= literals <= fields


def test_the_program_in_java_uses_names_that_the_generated_code_has(ours: Any) -> None:
    messages = dict(messages_of(ours.message_type))
    source = program("java")
    imported = set(re.findall(r"import inference\.(\w+);", source)) - {"GRPCInferenceServiceGrpc"}
    assert imported <= messages.keys()
    built = set(re.findall(r"([A-Z][\w.]*)\.newBuilder\(\)", source))
    assert {"ModelInferRequest", "ModelInferRequest.InferInputTensor"} <= built <= messages.keys()
    names = {camel(field.name) for message in messages.values() for field in message.field}
    called = set(re.findall(r"\.(?:set|add|put|get)([A-Z]\w+)\(", source)) - {"Int", "Float"}
    assert {"Inputs", "RawOutputContents"} <= called <= names
