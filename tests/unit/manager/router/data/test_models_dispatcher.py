"""Several models behind one dispatcher: which one a request goes to, whatever bytes it has."""

from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.data_plane import CALLER, data_plane
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.models_dispatcher import ModelsDispatcher, _name
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.served import ServedModel

NAMES = ServedNames(("minilm",), more=(ServedNames(("bge",), served=ServedModel("bge")),))
_CODE = grpc.StatusCode


def models(*planes):
    """A dispatcher over the data planes of the models, in their order."""
    made = {names.served: plane for names, plane in zip(NAMES.models, planes, strict=True)}
    dispatcher = ModelsDispatcher(NAMES, lambda served: made[served].dispatcher)
    views = [
        replace(view, ensemble=served.name, id=f"{served.name}-{view.id}")
        for served, plane in made.items()
        for view in plane.views
    ]
    dispatcher.update(views)
    return dispatcher


@pytest.fixture
async def two():
    async with data_plane(1) as first, data_plane(1) as second:
        yield models(first, second), first, second


async def refusal(dispatcher, message):
    with pytest.raises(DispatchError) as caught:
        await dispatcher.infer(message, timeout=5, metadata=(), caller=CALLER)
    assert caught.value.message.isprintable()
    return caught.value.code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", _CODE.INVALID_ARGUMENT),
        (b"\xff" * 20, _CODE.INVALID_ARGUMENT),
        (b"\x0a\xff\xff\xff\xff\x0f", _CODE.INVALID_ARGUMENT),
        (b"\x0a\x03\xff\xfe\xfd", _CODE.INVALID_ARGUMENT),
        (service_pb2.ModelInferRequest(model_name="../bge").SerializeToString(), _CODE.INVALID_ARGUMENT),
        (service_pb2.ModelInferRequest(model_name="bge\0").SerializeToString(), _CODE.INVALID_ARGUMENT),
        (service_pb2.ModelInferRequest(model_name="BGE").SerializeToString(), _CODE.NOT_FOUND),
        (service_pb2.ModelInferRequest(model_name="bge_").SerializeToString(), _CODE.NOT_FOUND),
        (service_pb2.ModelInferRequest(model_name="embedding_embedder").SerializeToString(), _CODE.NOT_FOUND),
    ],
)
async def test_a_request_for_no_model_is_refused_and_counted(two, message, code):
    dispatcher, first, second = two
    assert await refusal(dispatcher, message) is code
    assert first.dispatcher.meter.collect().total.codes == {code: 1}
    assert [*first.fakes[0].requests, *second.fakes[0].requests] == []


async def test_a_name_that_is_not_the_first_field_is_found(two):
    dispatcher, first, second = two
    request = infer_request(b"a text")
    request.model_name = ""
    name = service_pb2.ModelInferRequest(model_name="bge").SerializeToString()
    await dispatcher.infer(request.SerializeToString() + name, timeout=5, metadata=(), caller=CALLER)
    assert (len(first.fakes[0].requests), len(second.fakes[0].requests)) == (0, 1)


@pytest.fixture
def with_adapters():
    """A dispatcher over a model with two adapters, its names, and its data plane."""
    more = tuple(ServedNames((name,), served=ServedModel(name, base="embedding")) for name in ("law", "med"))
    return ServedNames(("minilm",), more=more)


async def test_an_adapter_may_be_named_by_the_parameter_too(with_adapters):
    async with data_plane(1) as plane:
        dispatcher = ModelsDispatcher(with_adapters, lambda _served: plane.dispatcher)
        dispatcher.update([replace(view, ensemble="embedding") for view in plane.views])
        seen = []

        async def infer(message):
            seen.append(_name(message, 1))
            return await dispatcher.infer(message, timeout=5, metadata=(), caller=CALLER)

        for name, adapter in (("minilm", "law"), ("embedding", "med"), ("law", "law"), ("med", None), ("minilm", None)):
            request = infer_request(b"a text", **({"adapter": adapter} if adapter else {}))
            request.model_name = name
            answer = await with_adapters.infer(request.SerializeToString(), infer)
            assert service_pb2.ModelInferResponse.FromString(answer).model_name == name
        # Tenants' models and limits, and metrics, see the adapter.
        assert seen == ["law", "med", "law", "med", "embedding"]
        sent = [(each.model_name, each.parameters["adapter"].string_param) for each in plane.fakes[0].requests]
        assert sent == [("embedding", name) for name in ("law", "med", "law", "med", "")]
        for name, adapter in (("minilm", "other"), ("law", "med"), ("minilm", "embedding")):
            request = infer_request(b"a text", adapter=adapter)
            request.model_name = name
            with pytest.raises(DispatchError, match="the model has no such adapter") as caught:
                await with_adapters.infer(request.SerializeToString(), infer)
            assert caught.value.code is _CODE.INVALID_ARGUMENT
        assert plane.dispatcher.meter.collect().total.codes == {_CODE.OK: 5, _CODE.INVALID_ARGUMENT: 3}


async def test_calls_about_a_model_go_to_its_servers_and_others_to_any(two):
    dispatcher, first, second = two
    asked = service_pb2.ModelReadyRequest(name="bge").SerializeToString()
    await dispatcher.call("ModelReady", asked, timeout=5)
    await dispatcher.call("ServerMetadata", b"", timeout=5)
    load = service_pb2.RepositoryModelLoadRequest(model_name="bge").SerializeToString()
    await dispatcher.call("RepositoryModelLoad", load, timeout=5)
    assert (first.fakes[0].calls, second.fakes[0].calls) == (["ServerMetadata"], ["ModelReady", "RepositoryModelLoad"])
    with pytest.raises(DispatchError) as caught:
        await dispatcher.call("ModelReady", service_pb2.ModelReadyRequest(name="x").SerializeToString(), timeout=5)
    assert caught.value.code is _CODE.NOT_FOUND
    assert len(dispatcher.serving()) == 2
    assert dispatcher.serving("bge_embedder") == second.dispatcher.serving()
    assert dispatcher.serving("x") == []


@given(st.binary(max_size=60), st.integers(1, 20))
def test_any_bytes_have_a_name_or_none(message, number):
    assert isinstance(_name(message, number), str)
