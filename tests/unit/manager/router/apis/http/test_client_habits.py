"""Small things that clients, orchestrators and browsers do, which must not fail."""

import json
from importlib.metadata import version

import pytest
from tests.unit.manager.router.apis.http.conftest import MODEL, FakeDispatcher, running, server_view

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.apis.http.cors import read_origins
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState

BODY = json.dumps({"input": "a text"})
ORIGIN = "https://app.example"
ASKED = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.parametrize(
    "path",
    ["/embeddings", "/embeddings/", "/v1/embeddings/", "//v1/embeddings", "/v1//embeddings", "///v1///embeddings/"],
)
async def test_slashes_and_a_base_url_without_v1_do_not_matter(serving, dispatcher, path):
    answer = await serving.raw("POST", path, data=BODY)
    assert (answer.status, len(answer.body["data"])) == (200, 1)
    assert len(dispatcher.requests) == 1
    refused = await serving.raw("POST", f"{path}?a=1", data="{}")
    assert (refused.status, refused.body["error"]["param"]) == (400, "input")


async def test_slashes_within_a_name_stay():
    async with running(FakeDispatcher(), names=ServedNames(("m",), ("/models/m",))) as serving:
        assert (await serving.raw("GET", "//v1/models//models/m")).status == 200
        assert (await serving.raw("GET", "//v1/models//models//m")).status == 404
        assert (await serving.get("/models")).body["data"][0]["id"] == "m"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/health/ready", "/healthz/"])
async def test_readiness_follows_the_servers(serving, dispatcher, path):
    ready = await serving.get(path)
    assert (ready.status, ready.body["message"]) == (200, "Service is ready.")
    dispatcher.views = [server_view("a", ServerState.STARTING)]
    waiting = await serving.get(path)
    assert (waiting.status, waiting.body["message"]) == (503, "no server is ready")


@pytest.mark.parametrize("path", ["/livez", "/ping", "/v1/health/live"])
async def test_a_process_lives_without_servers(serving, dispatcher, path):
    dispatcher.views = []
    assert (await serving.get(path)).status == 200


async def test_version_and_metadata(serving):
    assert (await serving.get("/version")).body["version"] == version("tritonembed")
    assert (await serving.get("/v1/version")).body["release"] == version("tritonembed")
    found = (await serving.get("/v1/metadata")).body
    assert (found["version"], found["modelInfo"][0]["shortName"]) == (version("tritonembed"), MODEL)


@pytest.mark.parametrize(
    ("given", "sent"),
    [("document", "passage"), ("search_document", "passage"), ("search_query", "query"), ("query", "query")],
)
async def test_input_types_of_other_apis_have_the_servers_names(serving, dispatcher, given, sent):
    answer = await serving.post("/v1/embeddings", data=json.dumps({"input": "a", "input_type": given}))
    assert answer.status == 200
    assert dispatcher.requests[0].parameters["input_type"].string_param == sent


async def test_without_the_option_preflights_are_refused(serving):
    answer = await serving.raw("OPTIONS", "/v1/embeddings", headers=ASKED)
    assert answer.status == 405
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origins", [(ORIGIN,), ("https://other.example", ORIGIN), ("*",)])
async def test_pages_of_an_allowed_origin_may_call(origins):
    async with running(FakeDispatcher(), cors_origins=origins) as serving:
        preflight = await serving.raw("OPTIONS", "/v1/embeddings", headers=ASKED)
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        for answer in (
            preflight,
            await serving.post("/v1/embeddings", data=BODY, headers={"Origin": ORIGIN}),
            await serving.post("/v1/embeddings", data="{", headers={"Origin": ORIGIN}),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == ("*" if origins == ("*",) else ORIGIN)
            assert (answer.headers.get("Vary") == "Origin") is (origins != ("*",))
        assert (await serving.raw("OPTIONS", "/v1/embeddings", headers={"Origin": ORIGIN})).status == 405


async def test_pages_of_other_origins_may_not():
    async with running(FakeDispatcher(), cors_origins=(ORIGIN,)) as serving:
        other = {**ASKED, "Origin": "https://evil.example"}
        assert (await serving.raw("OPTIONS", "/v1/embeddings", headers=other)).status == 405
        answer = await serving.post("/v1/embeddings", data=BODY, headers={"Origin": "https://evil.example"})
        assert answer.status == 200
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin"


def test_an_origin_is_written_as_browsers_send_it():
    assert read_origins(["https://App.example", "http://localhost:3000", "*"]) == (
        "https://app.example",
        "http://localhost:3000",
        "*",
    )
    for wrong in ("app.example", "https://app.example/", "https://", "", "https://a, https://b"):
        with pytest.raises(StartError, match="--cors-origin"):
            read_origins([wrong])
