"""Requests that an endpoint refuses are counted once, by code, like requests that a server refuses."""

import grpc
import pytest
from tests.fakes.data_plane import data_plane
from tests.unit.manager.router.apis.http.conftest import MODEL

from tritonembed_manager.router.interfaces import DispatchError

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
INFER = "/v2/models/embedding/infer"


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/embeddings", b"{bad", INVALID),
        ("/v1/embeddings/", b'{"input": 7}', INVALID),
        ("/v1/embeddings", b'{"input": "a", "model": "another"}', NOT_FOUND),
        (INFER, b"[]", INVALID),
        (INFER, b'{"inputs": [{"name": "text"}]}', INVALID),
    ],
)
async def test_a_request_that_an_endpoint_refuses_is_counted_by_its_code(serving, dispatcher, path, body, code):
    answer = await serving.post(path, data=body, headers={"Content-Type": "application/json"})
    assert answer.status in (400, 404)
    assert dispatcher.refusals == [code]


async def test_requests_that_the_dispatcher_counted_are_not_counted_again(serving, dispatcher):
    assert (await serving.post("/v1/embeddings", json={"input": "a", "model": MODEL})).status == 200
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    # That JSON can't hold another model's outputs is known only once they have arrived.
    assert (await serving.post("/v2/models/another/infer", json={"inputs": [tensor]})).status == 400
    assert len(dispatcher.requests) == 2
    dispatcher.failure = DispatchError(INVALID, "dimensions: must be at least 1")
    assert (await serving.post("/v1/embeddings", json={"input": "a", "dimensions": 1})).status == 400
    assert (await serving.get("/v1/models/another")).status == 404
    assert (await serving.post("/v2/nothing/here")).status == 404
    assert dispatcher.refusals == []


async def test_a_refusal_is_a_request_of_the_meter_and_no_latency():
    async with data_plane(1) as plane:
        plane.dispatcher.refused(INVALID)
        total = plane.dispatcher.meter.collect().total
        assert (total.requests, total.errors, dict(total.codes), total.timed) == (1, 1, {INVALID: 1}, 0)
