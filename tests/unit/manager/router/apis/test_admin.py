"""Requests that change servers are refused without --admin, and always for a web page."""

import grpc
import grpc.aio
import pytest
from tests.fakes.data_plane import data_plane
from tests.unit.manager.router.apis.http.conftest import running
from tests.unit.manager.router.apis.test_kserve_grpc import endpoint
from tritonclient.grpc import service_pb2

CHANGES = {
    "/v2/logging": {"log_info": False},
    "/v2/trace/setting": {"trace_rate": "1"},
    "/v2/models/embedding/trace/setting": {"trace_rate": "1"},
    "/v2/repository/models/embedding/load": {},
    "/v2/repository/models/embedding/unload": {"parameters": {"unload_dependents": True}},
}
READS = ["/v2", "/v2/logging", "/v2/trace/setting", "/v2/models/embedding/trace/setting", "/v2/models/embedding/config"]
SIMPLE = {
    "a page of another site": {"Origin": "https://evil.example", "Content-Type": "application/json"},
    "a sandboxed page": {"Origin": "null", "Content-Type": "application/json"},
    "a page after DNS rebinding": {
        "Origin": "http://evil.example:8080",
        "Host": "evil.example:8080",
        "Content-Type": "application/json",
    },
    "a page's request without its origin": {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"},
    "text": {"Content-Type": "text/plain"},
    "text as JSON": {"Content-Type": "text/plain; a=application/json"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "a form of files": {"Content-Type": "multipart/form-data; boundary=a"},
    "no type's name": {"Content-Type": ""},
}
"""Headers of requests that a browser sends for a web page without a CORS preflight."""


def changing_requests():
    trace = service_pb2.TraceSettingRequest(model_name="embedding")
    trace.settings["trace_rate"].value.append("1")
    reset = service_pb2.TraceSettingRequest()
    reset.settings["trace_rate"].SetInParent()
    log = service_pb2.LogSettingsRequest()
    log.settings["log_info"].bool_param = False
    return [
        ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="embedding")),
        ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="embedding")),
        ("TraceSetting", trace),
        ("TraceSetting", reset),
        ("LogSettings", log),
    ]


@pytest.fixture
async def plane():
    async with data_plane(2) as plane:
        yield plane


@pytest.mark.parametrize("slash", ["", "/"])
async def test_http_changes_no_server_without_admin(plane, slash):
    async with running(plane.dispatcher) as serving:
        for path, body in CHANGES.items():
            for form in ({"json": body}, {"json": {}}, {"data": b""}, {"data": b"x", "headers": SIMPLE["text"]}):
                answer = await serving.post(path + slash, **form)
                assert answer.status == 403
                assert "--admin" in answer.body["error"]
                assert answer.body["error"].isprintable()
        # KServe has no such route, and neither has the manager.
        assert (await serving.post("/v2/models/embedding/unload")).status in (404, 405)
    assert not any(fake.calls for fake in plane.fakes)


async def test_grpc_changes_no_server_without_admin():
    async with endpoint(2) as (plane, stub):
        for method, request in changing_requests():
            with pytest.raises(grpc.aio.AioRpcError, match="--admin") as caught:
                await getattr(stub, method)(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not any(fake.calls for fake in plane.fakes)


async def test_requests_that_only_read_need_no_admin(plane):
    async with running(plane.dispatcher) as serving:
        for path in READS:
            assert (await serving.get(path, headers=SIMPLE["a page of another site"])).status == 200
        assert (await serving.post("/v2/repository/index")).status == 200
    async with endpoint(1) as (_, stub):
        await stub.LogSettings(service_pb2.LogSettingsRequest(), timeout=10)
        await stub.TraceSetting(service_pb2.TraceSettingRequest(model_name="embedding"), timeout=10)
        await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)


@pytest.mark.parametrize("headers", SIMPLE.values(), ids=SIMPLE.keys())
async def test_a_browsers_simple_request_changes_no_server_with_admin_either(plane, headers):
    async with running(plane.dispatcher, admin=True) as serving:
        for path in CHANGES:
            for body in (b"{}", b'{"log_info": false}', b""):
                answer = await serving.post(path, data=body, headers=headers)
                assert answer.status in (403, 415)
                assert answer.body["error"].isprintable()
    assert not any(fake.calls for fake in plane.fakes)


async def test_with_admin_a_change_goes_to_every_server(plane):
    async with running(plane.dispatcher, admin=True) as serving:
        for path, body in CHANGES.items():
            assert (await serving.post(path, json=body)).status == 200
    expected = ["LogSettings", "TraceSetting", "TraceSetting", "RepositoryModelLoad", "RepositoryModelUnload"]
    assert [fake.calls for fake in plane.fakes] == [expected, expected]


@pytest.mark.parametrize(
    "name",
    ["config", "file:1/model.py", "file:../../x", "file:/etc/x", "file:", "file:1/a\0b", "another"],
)
async def test_a_load_may_not_contain_code(plane, name):
    """Not even with --admin, because clients of the port are not authenticated."""
    async with running(plane.dispatcher, admin=True) as serving:
        path = "/v2/repository/models/embedding/load"
        answer = await serving.post(path, json={"parameters": {name: "YQ=="}})
        assert answer.status == 403
        assert "files" in answer.body["error"]
        assert (await serving.post(path, json={"parameters": {}})).status == 200
    async with endpoint(1, admin=True) as (one, stub):
        request = service_pb2.RepositoryModelLoadRequest(model_name="embedding")
        request.parameters[name].bytes_param = b"a"
        with pytest.raises(grpc.aio.AioRpcError, match="files") as caught:
            await stub.RepositoryModelLoad(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not one.fakes[0].calls
    assert [fake.calls for fake in plane.fakes] == [["RepositoryModelLoad"]] * 2
