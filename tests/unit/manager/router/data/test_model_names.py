"""Every endpoint checks names of models and versions by Triton's rules."""

import grpc
import grpc.aio
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import OPTIONS
from tests.unit.manager.router.apis.http.conftest import running
from tests.unit.manager.router.apis.test_kserve_grpc import endpoint
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import MAX_NAME, check_name
from tritonembed_manager.router.interfaces import DispatchError

GOOD_NAMES = ["embedding", "my-model_v1.5", "a b", "modèle", "..a", "a" * MAX_NAME, "a%2Fb"]
BAD_NAMES = [
    "embedding\0x",
    "\0",
    "embedding\n",
    "a\x1b[31m",
    "a\x7f",
    "a\x9b31m",
    "a\u2028b",
    "a\u202eb",
    "\ud800",
    "../embedding",
    "embedding/1",
    "/embedding",
    "a\\b",
    ".",
    "..",
    "a" * (MAX_NAME + 1),
    "é" * 128,
]
GOOD_VERSIONS = ["", "1", "01", str(2**63 - 1)]
BAD_VERSIONS = ["1abc", "1\0x", " 1", "+1", "-1", "-2", "1.0", "٣", "9" * 20, "9" * 5000]
NAMED = {
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
    "RepositoryModelLoad": "model_name",
    "RepositoryModelUnload": "model_name",
    "TraceSetting": "model_name",
}


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_that_a_folder_may_have_is_valid(name):
    for version in GOOD_VERSIONS:
        check_name(name, version)


@pytest.mark.parametrize(
    ("name", "version"),
    [(name, "") for name in ["", *BAD_NAMES]] + [("embedding", version) for version in BAD_VERSIONS],
)
def test_any_other_name_is_refused_in_one_printable_line_without_it(name, version):
    with pytest.raises(DispatchError) as caught:
        check_name(name, version)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.message.isprintable()
    assert "abc" not in caught.value.message


@pytest.fixture
async def plane():
    async with data_plane(1) as plane:
        yield plane


PATHS = [
    "embedding%00x",
    "%00",
    "embedding%0A",
    "embedding%0d%0aX",
    "a%1b[31m",
    "%2E%2E",
    "%2e",
    "..%2Fembedding",
    "embedding%2F1",
    "embedding%5C1",
    "embedding%FF",
    "embedding%C0%80",
    "%ED%A0%80",
    "a" * 256,
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_name_that_triton_does_not_allow_is_400_on_every_http_route(plane, path):
    async with running(plane.dispatcher, admin=True) as serving:
        for method, route in (
            ("GET", "/v2/models/{}"),
            ("GET", "/v2/models/{}/ready"),
            ("GET", "/v2/models/{}/config"),
            ("GET", "/v2/models/{}/stats"),
            ("GET", "/v2/models/{}/trace/setting"),
            ("POST", "/v2/models/{}/trace/setting"),
            ("POST", "/v2/models/{}/infer"),
            ("POST", "/v2/models/{}/versions/1/infer"),
            ("POST", "/v2/repository/models/{}/load"),
            ("POST", "/v2/repository/models/{}/unload"),
        ):
            answer = await serving.raw(method, route.format(path))
            assert answer.status == 400, route
            assert "the model's name" in answer.body["error"] or "UTF-8" in answer.body["error"]
            assert answer.body["error"].isprintable()
    assert not any(fake.calls or fake.requests for fake in plane.fakes)


@pytest.mark.parametrize("version", ["9" * 20, "9223372036854775808"])
async def test_a_version_that_triton_does_not_allow_is_400(plane, version):
    async with running(plane.dispatcher) as serving:
        for rest in ("", "/ready", "/config", "/stats"):
            assert (await serving.raw("GET", f"/v2/models/embedding/versions/{version}{rest}")).status == 400
    assert not any(fake.calls for fake in plane.fakes)


@pytest.mark.parametrize("method", NAMED)
async def test_a_name_that_triton_does_not_allow_is_invalid_in_every_grpc_call(method):
    request = getattr(service_pb2, f"{method}Request")
    async with endpoint(1, admin=True) as (plane, stub):
        for name in BAD_NAMES:
            if name.isascii() or name.encode(errors="replace").decode() == name:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, method)(request(**{NAMED[method]: name}), timeout=10)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        if "version" in request.DESCRIPTOR.fields_by_name:
            for version in BAD_VERSIONS:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, method)(request(name="embedding", version=version), timeout=10)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, version
        assert not plane.fakes[0].calls


@pytest.mark.parametrize("method", [*NAMED, "LogSettings", "RepositoryIndex", "ServerMetadata"])
async def test_too_many_bytes_and_bytes_that_are_no_message_are_invalid(method):
    async with endpoint(1, admin=True) as (plane, _stub):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", OPTIONS) as channel:
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            # A name that is not UTF-8, a field past the end, and a megabyte of unknown fields.
            for encoded in (b"\x0a\x09a", b"\xff", b"\x98\x06\x01" * 400_000):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(encoded, timeout=10)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not plane.fakes[0].calls
