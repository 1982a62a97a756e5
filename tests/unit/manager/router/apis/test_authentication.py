"""The door: every route and method needs a key, but for the few that are named."""

import asyncio
from base64 import b64encode
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from tests.fakes.tenants import CountedTime, key_of, tenant
from tests.fakes.triton import OPTIONS, infer_request
from tests.unit.manager.router.apis.http.conftest import MODEL, FakeDispatcher, running
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.arctic import SERVICE as ARCTIC
from tritonembed_manager.router.apis.arctic import add_arctic
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.router.apis.authentication import Door
from tritonembed_manager.router.apis.authentication import key_of as key_in
from tritonembed_manager.router.apis.grpc_arrivals import Arrivals
from tritonembed_manager.router.apis.grpc_health import HEALTH, add_health
from tritonembed_manager.router.apis.kserve_grpc import add_kserve
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenant_dispatcher import TenantDispatcher
from tritonembed_manager.router.data.tenants import EXPIRED_KEY, NO_ADMIN, NO_KEY, NO_MONITOR, OTHER_MODEL, Tenants
from tritonembed_manager.router.data.upstream import SERVICE as KSERVE
from tritonembed_manager.router.endpoints import NAMES, add_reflection
from tritonembed_manager.router.interfaces import Caller

HEALTH_ROUTES = {
    *("/health", "/healthz", "/livez", "/readyz", "/ping"),
    *("/v1/health/live", "/v1/health/ready", "/v2/health/live", "/v2/health/ready"),
}
MONITOR_ROUTES = {"/", "/status", "/status/history", "/metrics"}


def is_page(method, path):
    """Whether a browser shows it to its user."""
    return method != "POST" and (
        (path.rstrip("/") or "/") in MONITOR_ROUTES or path.startswith("/status") or path.endswith((".js", ".css"))
    )


BODY = {"model": MODEL, "input": "a"}


class Doors:
    """A door of tenants over a dispatcher that a test controls."""

    def __init__(self, *tenants, key_for_health=False, key_for_metrics=True):
        self.time = CountedTime()
        self.tenants = Tenants(tenants, ServedNames((MODEL,)), lambda: 50.0)
        self.inner = FakeDispatcher()
        self.door = Door(self.tenants, self.time.quotas, self.inner.refused, key_for_health, key_for_metrics)
        self.dispatcher = TenantDispatcher(self.inner, self.time.quotas)

    def http(self):
        return running(self.dispatcher, door=self.door)

    @asynccontextmanager
    async def grpc(self):
        server = grpc.aio.server(options=OPTIONS)
        guarded = Arrivals(10.0).over(self.door.over(server))
        add_kserve(guarded, self.dispatcher, lambda: True, names=ServedNames((MODEL,)))
        add_arctic(guarded, self.dispatcher, ServedNames((MODEL,)), lambda: True)
        add_health(guarded, self.dispatcher, lambda: True)
        add_reflection(guarded)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
                yield channel
        finally:
            await server.stop(None)


def bearer(name):
    return {"Authorization": f"Bearer {key_of(name)}"}


async def call(channel, method, message=b"", key=None, header="authorization", scheme="Bearer "):
    """Status, details and trailing metadata of a call; of OK, the answer instead of the details."""
    metadata = [] if key is None else [(header, scheme + key)]
    try:
        started = channel.unary_unary(method)(message, metadata=metadata, timeout=20)
        return grpc.StatusCode.OK, await started, dict(await started.trailing_metadata())
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), dict(error.trailing_metadata())


def infer(*outputs, model="embedding"):
    message = infer_request(b"a text")
    message.model_name = model
    for name in outputs:
        message.outputs.add(name=name)
    return message.SerializeToString()


# HTTP


async def test_every_route_needs_a_key_but_for_health():
    doors = Doors(tenant("a"))
    async with doors.http() as serving:
        router = serving.app.router
        routes = {(route.method, route.resource.canonical) for route in router.routes()}
        assert len(routes) > 60
        for method, path in routes:
            found = await serving.raw("GET" if method == "*" else method, path.replace("{", "").replace("}", ""))
            is_open = path.rstrip("/") in HEALTH_ROUTES
            assert (found.status == 401) is not is_open, (method, path)
            if not is_open:
                assert found.headers["WWW-Authenticate"].startswith("Basic" if is_page(method, path) else "Bearer")
        for method, path in (("GET", "/nothing"), ("DELETE", "/v1/embeddings"), ("GET", "//v1/models")):
            assert (await serving.raw(method, path)).status == 401
    assert not doors.inner.requests
    assert not doors.inner.calls


async def test_no_body_is_read_without_a_key():
    doors = Doors(tenant("a"))
    async with doors.http() as serving:
        found = await serving.post("/v1/embeddings", data=b"{" * 10)
        assert found.status == 401
        assert found.body["error"] == {
            "message": NO_KEY, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"
        }  # fmt: skip
        assert (await serving.post("/v2/models/embedding/infer", data=b"{")).body == {"error": NO_KEY}
    assert doors.inner.refusals == [grpc.StatusCode.UNAUTHENTICATED] * 2


async def test_a_key_opens_and_the_caller_is_the_tenant():
    doors = Doors(tenant("a", weight=2.5, requests_per_minute=10), tenant("late", 1, expires=50.0))
    async with doors.http() as serving:
        for headers in (bearer("a"), {"x-api-key": key_of("a")}, {"authorization": f"bearer  {key_of('a')}"}):
            assert (await serving.post("/v1/embeddings", json=BODY, headers=headers)).status == 200
        late = await serving.post("/v1/embeddings", json=BODY, headers=bearer("late"))
        assert (late.status, late.body["error"]["message"]) == (401, EXPIRED_KEY)
        # The connection is the same: nothing of the last request's tenant is left.
        assert (await serving.post("/v1/embeddings", json=BODY)).status == 401
        assert "x-ratelimit-limit-requests" in (await serving.get("/v1/models", headers=bearer("a"))).headers
        assert "x-ratelimit-limit-requests" not in (await serving.get("/health")).headers
    assert doors.inner.callers == [Caller("a", 2.5, is_tenant=True)] * 3
    assert not any("te-key" in str(metadata) for metadata in doors.inner.metadata)


async def test_a_page_asks_its_browser_for_a_key_and_no_other_route_takes_it():
    doors = Doors(tenant("a", monitor=True))
    basic = {"Authorization": "Basic " + b64encode(b"anyone:" + key_of("a").encode()).decode()}
    async with doors.http() as serving:
        assert (await serving.get("/")).headers["WWW-Authenticate"].startswith("Basic realm=")
        for path in ("/", "/status.js", "/metrics"):
            assert (await serving.get(path, headers=basic)).status == 200
        assert (await serving.post("/v1/embeddings", json=BODY, headers=basic)).status == 401
        wrong = {"Authorization": "Basic %%%"}
        assert (await serving.get("/", headers=wrong)).status == 401


async def test_metrics_and_the_status_are_for_those_who_may_see_all_tenants():
    doors = Doors(tenant("a"), tenant("watcher", 1, monitor=True), tenant("root", 2, admin=True))
    async with doors.http() as serving:
        for path in MONITOR_ROUTES:
            refused = await serving.get(path, headers=bearer("a"))
            assert (refused.status, refused.body) == (403, {"error": NO_MONITOR})
            for name in ("watcher", "root"):
                assert (await serving.get(path, headers=bearer(name))).status in (200, 503)
        text = (await serving.get("/metrics", headers=bearer("watcher"))).body.decode()
        assert 'tritonembed_tenant_requests_total{tenant="a"} 0.0' in text
        assert "te-key" not in text


@pytest.mark.parametrize(("health", "metrics"), [(True, True), (False, False), (True, False)])
async def test_health_and_metrics_want_a_key_or_not(health, metrics):
    doors = Doors(tenant("a", monitor=True), key_for_health=health, key_for_metrics=metrics)
    async with doors.http() as serving, doors.grpc() as channel:
        for path in HEALTH_ROUTES:
            assert (await serving.get(path)).status == (401 if health else 200)
            assert (await serving.get(path, headers=bearer("a"))).status == 200
        for path in MONITOR_ROUTES:
            assert ((await serving.get(path)).status == 401) is metrics
        code = grpc.StatusCode.UNAUTHENTICATED if health else grpc.StatusCode.OK
        assert (await call(channel, f"/{HEALTH}/Check"))[0] is code
        assert (await call(channel, f"/{HEALTH}/Check", key=key_of("a")))[0] is grpc.StatusCode.OK


async def test_only_administrators_change_servers():
    doors = Doors(tenant("a"), tenant("root", 1, admin=True))
    doors.inner.answers["RepositoryModelUnload"] = service_pb2.RepositoryModelUnloadResponse()
    message = service_pb2.RepositoryModelUnloadRequest(model_name="m").SerializeToString()
    method = f"/{KSERVE}/RepositoryModelUnload"
    async with doors.http() as serving, doors.grpc() as channel:
        url = "/v2/repository/models/m/unload"
        refused = await serving.post(url, headers=bearer("a"))
        assert (refused.status, refused.body) == (403, {"error": NO_ADMIN})
        assert (await serving.post(url, headers=bearer("root"))).status == 200
        assert (await call(channel, method, message, key_of("a")))[:2] == (
            grpc.StatusCode.PERMISSION_DENIED,
            NO_ADMIN,
        )
        assert (await call(channel, method, message, key_of("root")))[0] is grpc.StatusCode.OK


async def test_models_that_are_not_the_tenants_are_refused_on_every_route():
    doors = Doors(tenant("a", models=("other",)))
    doors.inner.answers["ModelReady"] = service_pb2.ModelReadyResponse(ready=True)
    binary = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]}
    async with doors.http() as serving, doors.grpc() as channel:
        assert (await serving.get("/v1/models", headers=bearer("a"))).body["data"] == []
        assert (await serving.get(f"/v1/models/{MODEL}", headers=bearer("a"))).status == 404
        assert (await serving.post("/v1/embeddings", json=BODY, headers=bearer("a"))).status == 403
        for path in ("", "/config", "/ready", "/stats", "/versions/1"):
            assert (await serving.get(f"/v2/models/embedding{path}", headers=bearer("a"))).status == 403
        refused = await serving.post("/v2/models/embedding/infer", json=binary, headers=bearer("a"))
        assert (refused.status, refused.body) == (403, {"error": OTHER_MODEL})
        denied = (grpc.StatusCode.PERMISSION_DENIED, OTHER_MODEL)
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            message = getattr(service_pb2, f"{method}Request")(name="embedding").SerializeToString()
            assert (await call(channel, f"/{KSERVE}/{method}", message, key_of("a")))[:2] == denied
        assert (await call(channel, f"/{KSERVE}/ModelInfer", infer(), key_of("a")))[:2] == denied
        assert (await call(channel, f"/{KSERVE}/ModelInfer", infer(model=MODEL), key_of("a")))[:2] == denied
        other = service_pb2.ModelReadyRequest(name="other").SerializeToString()
        assert (await call(channel, f"/{KSERVE}/ModelReady", other, key_of("a")))[0] is grpc.StatusCode.OK
    assert not doors.inner.requests


# gRPC

METHODS = [
    *(f"/{KSERVE}/{method.name}" for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods),
    *(f"/{ARCTIC}/{method.name}" for method in arctic.DESCRIPTOR.services_by_name["InferenceService"].methods),
    *(f"/{HEALTH}/{method.name}" for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods),
    *(f"/{name}/ServerReflectionInfo" for name in NAMES),
]
OPEN = {
    f"/{KSERVE}/ServerLive",
    f"/{KSERVE}/ServerReady",
    f"/{ARCTIC}/HealthCheck",
    f"/{HEALTH}/Check",
    f"/{HEALTH}/Watch",
}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_needs_a_key_but_for_health(method):
    doors = Doors(tenant("a"))
    async with doors.grpc() as channel:
        # gRPC's client may take a refusal while it still writes for an error of its own.
        stream = channel.stream_stream(method)(iter([b""] if method in OPEN else []), timeout=20)
        if method in OPEN:
            await stream.read()
            stream.cancel()
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, NO_KEY)
    assert not doors.inner.requests


async def test_a_message_is_not_awaited_without_a_key():
    doors = Doors(tenant("a"))
    async with doors.grpc() as channel:
        # It never sends one.
        stream = channel.stream_unary(f"/{KSERVE}/ModelInfer")(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert doors.inner.refusals == [grpc.StatusCode.UNAUTHENTICATED]


async def test_nothing_is_read_beyond_a_quota():
    doors = Doors(tenant("a", requests_per_minute=1))
    doors.time.quotas.enter(doors.tenants.all[0], 1)
    async with doors.http() as serving, doors.grpc() as channel:
        found = await serving.post("/v1/embeddings", data=b"{", headers=bearer("a"))
        assert (found.status, found.headers["Retry-After"]) == (429, "60")
        assert (await serving.get("/v1/models", headers=bearer("a"))).status == 200
        # It never sends a message.
        call = channel.stream_unary(f"/{KSERVE}/ModelInfer")(metadata=[("x-api-key", key_of("a"))], timeout=20)
        with pytest.raises(grpc.aio.AioRpcError, match="requests per minute are used up"):
            await call
        stream = channel.stream_stream(f"/{KSERVE}/ModelStreamInfer")(
            iter([infer()]), metadata=[("x-api-key", key_of("a"))], timeout=20
        )
        answer = service_pb2.ModelStreamInferResponse.FromString(await stream.read())
        assert "requests per minute are used up" in answer.error_message
    assert doors.time.table.used(0).over_requests == 3
    assert doors.inner.refusals == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3


@pytest.mark.parametrize(("header", "scheme"), [("authorization", "Bearer "), ("x-api-key", "")])
async def test_a_key_as_metadata_opens_and_quotas_are_in_the_trailing_metadata(header, scheme):
    doors = Doors(tenant("a", requests_per_minute=2))
    encode = arctic.EncodeRequest(prompts=["a"], n_prompts=1).SerializeToString()
    answered = (f"/{KSERVE}/ModelInfer", infer()), (f"/{ARCTIC}/Encode", encode)
    async with doors.grpc() as channel:
        for left, (method, message) in enumerate(reversed(answered)):
            code, _, trailing = await call(channel, method, message, key_of("a"), header, scheme)
            assert (code, trailing["x-ratelimit-remaining-requests"]) == (grpc.StatusCode.OK, str(1 - left))
        code, details, trailing = await call(channel, *answered[0], key_of("a"), header, scheme)
        assert (code, details) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "this tenant's 2 requests per minute are used up; try again later",
        )
        assert trailing["grpc-retry-pushback-ms"] == "30000"
        assert trailing["x-ratelimit-remaining-requests"] == "0"
    assert doors.inner.callers == [Caller("a", is_tenant=True)] * 2
    assert doors.inner.refusals == [grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_a_stream_ends_for_a_key_that_is_taken_away():
    doors = Doors(tenant("a"))
    async with doors.grpc() as channel:
        stream = channel.stream_stream(f"/{KSERVE}/ModelStreamInfer")(metadata=[("x-api-key", key_of("a"))], timeout=20)

        async def ask():
            await stream.write(infer())
            return service_pb2.ModelStreamInferResponse.FromString(await stream.read())

        assert not (await ask()).error_message
        doors.tenants.update([])
        assert (await ask()).error_message == "the key is not known"
        stream.cancel()


async def test_calls_at_one_time_keep_their_tenants_apart():
    doors = Doors(tenant("a"), tenant("b", 1))
    async with doors.grpc() as channel:
        doors.inner.released.clear()
        calls = [
            channel.unary_unary(f"/{KSERVE}/ModelInfer")(infer(), metadata=[("x-api-key", key_of(name))])
            for name in "abab"
        ]
        for _ in calls:
            await doors.inner.inside.acquire()
        doors.inner.released.set()
        for one in calls:
            await one
    assert sorted(caller.name for caller in doors.inner.callers) == ["a", "a", "b", "b"]
    assert [doors.time.table.used(slot).answered for slot in (0, 1)] == [2, 2]


async def test_tokens_are_counted_also_if_the_caller_does_not_ask_for_them():
    doors = Doors(tenant("a", tokens_per_minute=1000))
    async with doors.grpc() as channel:
        code, answer, trailing = await call(channel, f"/{KSERVE}/ModelInfer", infer("embedding"), key_of("a"))
        assert code is grpc.StatusCode.OK
        assert [output.name for output in service_pb2.ModelInferResponse.FromString(answer).outputs] == ["embedding"]
        assert trailing["x-ratelimit-limit-tokens"] == "1000"
    [asked] = doors.inner.requests
    assert [output.name for output in asked.outputs] == ["embedding", "num_tokens"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_huge_text_is_charged_as_far_as_a_model_reads_it(protocol):
    doors = Doors(tenant("a", tokens_per_minute=100_000))
    doors.inner.released.clear()
    text = "word " * 1_000_000
    async with doors.http() as serving, doors.grpc() as channel:
        if protocol == "http":
            sent = asyncio.ensure_future(serving.post("/v1/embeddings", json={"input": text}, headers=bearer("a")))
        else:
            message = infer_request(text.encode()).SerializeToString()
            sent = asyncio.ensure_future(call(channel, f"/{KSERVE}/ModelInfer", message, key_of("a")))
        await doors.inner.inside.acquire()
        _, of_tokens = doors.time.quotas.buckets(doors.tenants.all[0])
        assert of_tokens.used == pytest.approx(32_768, abs=100)
        doors.inner.released.set()
        await sent


async def test_nobody_aborts_the_calls_of_another_tenant():
    doors = Doors(tenant("a"), tenant("b", 1))
    encode = arctic.EncodeRequest(prompts=["a"], n_prompts=1, request_id="same").SerializeToString()
    abort = arctic.AbortRequest(request_id="same").SerializeToString()
    async with doors.grpc() as channel:
        doors.inner.released.clear()
        running_call = channel.unary_unary(f"/{ARCTIC}/Encode")(encode, metadata=[("x-api-key", key_of("a"))])
        await doors.inner.inside.acquire()
        for name, success in (("b", False), ("a", True)):
            code, answer, _ = await call(channel, f"/{ARCTIC}/Abort", abort, key_of(name))
            assert code is grpc.StatusCode.OK
            assert arctic.AbortResponse.FromString(answer).success is success
        assert arctic.EncodeResponse.FromString(await running_call).error == "aborted"


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        ("", "", None),
        ("Bearer k", "", "k"),
        ("bearer k", "other", "k"),
        ("BEARER   k ", "", "k"),
        ("Bearer", "k", "k"),
        ("Token t", "k", "k"),
        ("", " k ", "k"),
        ("Basic YTpr", "", None),
    ],
)
def test_where_the_key_is(authorization, api_key, expected):
    assert key_in(authorization, api_key) == expected


@pytest.mark.parametrize("header", [bearer("a"), {"x-api-key": key_of("a")}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", {"inputs": "a"}),
        ("/embed", {"inputs": "a"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/embeddings", {"input": "a"}),
        ("/v1/embed", {"texts": ["a"]}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query"}),
    ],
)
async def test_keys_and_quotas_hold_on_every_route_for_vectors(path, body, header):
    doors = Doors(tenant("a", requests_per_minute=1))
    async with doors.http() as serving:
        assert (await serving.post(path, json=body)).status == 401
        answer = await serving.post(path, json=body, headers=header)
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
        assert (await serving.post(path, json=body, headers=header)).status == 429
    assert doors.inner.callers == [Caller("a", is_tenant=True)]
    assert doors.inner.refusals == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED]
