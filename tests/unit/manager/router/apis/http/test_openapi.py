"""The OpenAPI document and its page, made of the application's routes."""

import json
import re
from base64 import b64encode
from hashlib import sha256

import jsonschema
import pytest
from tests.fakes.tenants import key_of, tenant
from tests.unit.manager.router.apis.test_authentication import Doors

from tritonembed_manager.router.apis.http import cohere, openai, tei
from tritonembed_manager.router.apis.http.errors import is_for_vectors
from tritonembed_manager.router.apis.http.openapi import BODIES

FIELDS = {
    "/v1/embeddings": openai._FIELDS,
    "/embeddings": openai._FIELDS,
    "/": tei._FIELDS,
    "/embed": tei._FIELDS,
    "/similarity": tei._FIELDS,
    "/tokenize": tei.TOKENIZE_FIELDS,
    "/decode": tei.DECODE_FIELDS,
    "/v1/embed": cohere._FIELDS,
    "/v2/embed": cohere._V2_FIELDS,
}
EXAMPLES = {
    "/v1/embeddings": {"input": ["a"], "encoding_format": "base64", "input_type": "query"},
    "/embeddings": {"input": "a"},
    "/": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/embed": {"inputs": ["a", "b"], "truncate": True},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncate": True}},
    "/v1/embed": {"texts": ["a"]},
    "/v2/embed": {"inputs": [{"content": [{"type": "text", "text": "a"}]}], "input_type": "clustering"},
    "/triton/embeddings": {"inputs": [{"name": "input_text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
    "/v2/models/{model}/infer": {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
        "parameters": {"as": "FP32"},
    },
}
WRONG = {
    "/v1/embeddings": {"input": []},
    "/embed": {"inputs": "a", "truncate": "yes"},
    "/similarity": {"inputs": ["a"]},
    "/v2/embed": {"texts": ["a"], "input_type": "other"},
}


async def test_every_route_has_a_summary_and_a_tag(serving):
    document = (await serving.get("/openapi.json")).body
    operations = {(method, path): found for path, of in document["paths"].items() for method, found in of.items()}
    assert len(operations) > 50
    lacking = [key for key, found in operations.items() if not found["summary"] or not found["tags"][0]]
    assert not lacking
    assert len({found["operationId"] for found in operations.values()}) == len(operations)
    assert {("post", path) for path in BODIES} <= set(operations)
    served = {route.resource.canonical.rstrip("/") or "/" for route in serving.app.router.routes()}
    assert {path for path in served if "." not in path} <= set(document["paths"])


async def test_every_route_for_vectors_has_its_body(serving):
    paths = (await serving.get("/openapi.json")).body["paths"]
    for path, operations in paths.items():
        if "post" in operations:
            asked = type("Request", (), {"method": "POST", "path": path})
            assert "requestBody" in operations["post"] or not is_for_vectors(asked), path


@pytest.mark.parametrize("path", FIELDS)
def test_the_schemas_have_the_fields_that_are_read(path):
    assert set(BODIES[path]["properties"]) == set(FIELDS[path])


@pytest.mark.parametrize("path", EXAMPLES)
async def test_what_fits_a_schema_is_answered(serving, path):
    jsonschema.validate(EXAMPLES[path], BODIES[path])
    answer = await serving.post(path.replace("{model}", "embedding"), data=json.dumps(EXAMPLES[path]))
    assert answer.status == 200


@pytest.mark.parametrize("path", WRONG)
async def test_what_does_not_fit_is_refused(serving, path):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(WRONG[path], BODIES[path])
    assert (await serving.post(path, data=json.dumps(WRONG[path]))).status in (400, 422)


async def test_errors_have_the_form_of_their_api(serving):
    paths = (await serving.get("/openapi.json")).body["paths"]
    examples = {
        path: paths[path]["post"]["responses"]["default"]["content"]["application/json"]["example"] for path in FIELDS
    }
    for path, example in examples.items():
        refused = await serving.post(path, data="[]")
        assert set(refused.body) == set(example)


async def test_the_page_needs_nothing_else(serving):
    answer = await serving.get("/docs")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = answer.raw.decode()
    assert "<code>/v2/embed</code>" in page
    assert re.findall(r"(?:src|href)=(\S+?)>", page) == ['"openapi.json"']
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["Content-Security-Policy"]
    assert "security" not in (await serving.get("/openapi.json")).body["paths"]["/embed"]["post"]


async def test_a_key_is_part_of_the_document_if_there_are_tenants():
    doors = Doors(tenant("a"))
    async with doors.http() as serving:
        assert (await serving.get("/docs")).status == 401
        headers = {"Authorization": f"Bearer {key_of('a')}"}
        document = (await serving.get("/openapi.json", headers=headers)).body
    assert set(document["components"]["securitySchemes"]) == {"bearer", "key"}
    assert document["paths"]["/embed"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
