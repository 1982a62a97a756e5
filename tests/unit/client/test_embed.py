from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from tests.unit.client.fake_server import DIMENSIONS, elements, parameters, respond

from tritonembed import EmbeddingClient, EmbeddingResult, InvalidArgumentError, ServerError


def numbers(count):
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1024])
def test_any_number_of_texts_comes_back_in_order(client, server, batch_size):
    count = 200
    result = client.embed(numbers(count), batch_size=batch_size)
    assert result.embeddings.shape == (count, DIMENSIONS)
    assert result.embeddings.dtype == np.float32
    assert result.embeddings[:, 0].tolist() == list(range(count))
    assert result.num_tokens.tolist() == [len(text) for text in numbers(count)]
    assert result.num_tokens.dtype == np.int32
    assert len(server.requests) == -(-count // batch_size)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 500])
def test_a_generator_of_texts_gives_the_same_as_a_list(client, count):
    from_list = client.embed(numbers(count))
    from_generator = client.embed(text for text in numbers(count))
    assert np.array_equal(from_list.embeddings, from_generator.embeddings)
    assert np.array_equal(from_list.num_tokens, from_generator.num_tokens)


def test_the_result_unpacks_and_belongs_to_the_caller(client):
    embeddings, num_tokens = client.embed(numbers(3))
    embeddings += 1
    num_tokens += 1
    assert embeddings.flags.c_contiguous
    assert embeddings[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["one text", b"one text"])
def test_a_single_text_is_refused_and_not_taken_for_its_letters(client, server, text):
    with pytest.raises(TypeError, match="single text"):
        client.embed(text)
    with pytest.raises(TypeError, match="single text"):
        client.iter_embed(text)
    assert server.requests == []


@pytest.mark.parametrize(
    ("kind", "dtype", "columns"),
    [
        ("float", np.float32, 10),
        ("float16", np.float16, 10),
        ("int8", np.int8, 10),
        ("uint8", np.uint8, 10),
        ("binary", np.int8, 2),
        ("ubinary", np.uint8, 2),
    ],
)
def test_every_embedding_type_has_its_dtype_and_width(client, kind, dtype, columns):
    for texts in (["7"], []):
        for dimensions in (None, 10):
            result = client.embed(texts, embedding_type=kind, dimensions=dimensions)
            assert result.embeddings.dtype == dtype
            assert result.embeddings.shape == (len(texts), columns)
            assert result.num_tokens.shape == (len(texts),)


def test_no_texts_with_dimensions_need_no_server(client, server):
    assert client.embed([], dimensions=9, embedding_type="binary").embeddings.shape == (0, 2)
    assert server.requests == []


def test_no_texts_without_dimensions_have_the_servers_width(client, server):
    assert client.embed(iter([])).embeddings.shape == (0, DIMENSIONS)
    assert client.embed_tokens([]).embeddings.shape == (0, DIMENSIONS)
    assert [request.inputs[0].shape for request in server.requests] == [[1, 1], [1, 1]]


def test_the_size_of_chunks_is_sent_as_numbers(client, server):
    client.embed(["1"], truncate="CHUNK", chunk_tokens=np.int64(32), chunk_overlap=0)
    assert parameters(server.requests[0]) == {"truncate": "CHUNK", "chunk_tokens": 32, "chunk_overlap": 0}
    for wrong in ({"chunk_tokens": 0}, {"chunk_overlap": -1}):
        with pytest.raises(InvalidArgumentError, match=r"^chunk_\w+ must be at least [01]"):
            client.embed(["1"], truncate="CHUNK", **wrong)
    with pytest.raises(TypeError):
        client.embed(["1"], chunk_tokens="8")


def test_every_parameter_is_sent_under_its_name(client, server):
    client.embed(
        ["1"], input_type="query", truncate="NONE", dimensions=4, embedding_type="int8", normalize=True, timeout=50
    )
    sent = parameters(server.requests[0])
    assert 0 < sent.pop("timeout") <= 50_000_000
    assert sent == {
        "input_type": "query",
        "truncate": "NONE",
        "dimensions": 4,
        "embedding_type": "int8",
        "normalize": True,
    }


@pytest.mark.parametrize(
    "asked", [{"prompt_name": "query"}, {"prompt": "find: "}, {"prompt": ""}, {"instruction": "find cats"}]
)
def test_a_prompt_is_sent_with_every_request(client, server, asked):
    client.embed(["1", "2"], batch_size=1, **asked)
    list(client.iter_embed(["1"], input_type="passage", **asked))
    assert [parameters(request) for request in server.requests] == [asked, asked, {"input_type": "passage", **asked}]


def test_an_adapter_is_sent_with_every_request(client, server):
    client.embed(["1", "2"], batch_size=1, adapter="law")
    client.embed_tokens([[1]], adapter="law")
    client.embed(["1"], adapter=None)
    asked = {"adapter": "law"}
    assert [parameters(request) for request in server.requests] == [asked, asked, asked, {}]


@pytest.mark.parametrize("name", ["prompt_name", "prompt", "instruction", "adapter"])
def test_a_prompt_that_cannot_be_sent_is_refused_without_showing_it(client, server, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name}: a lone surrogate at character 6 ") as caught:
        client.embed(["1"], **{name: "secret\ud800"})
    assert "secret" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    with pytest.raises(TypeError, match=f"^{name} is bytes, not str$"):
        client.iter_embed(["1"], **{name: b"secret"})
    assert server.requests == []


def test_parameters_that_were_not_given_are_not_sent(client, server):
    client.embed(["1"])
    assert parameters(server.requests[0]) == {}


def test_an_interactive_request_is_sent_with_kserves_highest_priority(client, server):
    client.embed(["1"], priority="interactive")
    client.embed_tokens([[1]], priority="interactive")
    client.embed(["1"], priority="bulk")
    next(client.iter_embed(["1"], priority="interactive"))
    assert [parameters(request) for request in server.requests] == [
        {"priority": 1},
        {"priority": 1},
        {},
        {"priority": 1},
    ]
    assert server.requests[0].parameters["priority"].WhichOneof("parameter_choice") == "uint64_param"


@pytest.mark.parametrize("priority", ["high", 1, None])
def test_another_priority_is_refused_before_anything_is_sent(client, server, priority):
    with pytest.raises(InvalidArgumentError, match="interactive, bulk"):
        client.embed(["1"], priority=priority)
    assert server.requests == []


def test_a_request_follows_the_wire_contract(client, server):
    client.embed(["één", ""])
    request = server.requests[0]
    assert request.model_name == "embedding"
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("text", "BYTES", [2, 1])
    ]
    assert {output.name for output in request.outputs} == {"embedding", "num_tokens"}
    assert elements(request) == ["één".encode(), b""]


def test_token_ids_are_sent_directly_to_the_embedder(client, server):
    result = client.embed_tokens([[5, 6], np.array([7])])
    assert result.embeddings[:, 0].tolist() == [11, 7]
    assert result.num_tokens.tolist() == [2, 1]
    assert server.requests[0].model_name == "embedder"
    assert server.requests[0].inputs[0].name == "token_ids"


def test_models_of_other_names_are_used(server):
    with EmbeddingClient(server.target, model="mine", tokens_model="other") as client:
        client.embed(["1"])
        client.embed_tokens([[1]])
    assert [request.model_name for request in server.requests] == ["mine", "other"]


def test_a_lone_surrogate_is_refused_before_anything_is_sent(client, server):
    with pytest.raises(InvalidArgumentError, match=r"text\[1\]"):
        client.embed(["fine", "\udfff"])
    assert server.requests == []


@pytest.mark.parametrize("dimensions", [0, -1, 2**63])
def test_dimensions_that_cannot_be_are_refused_before_anything_is_sent(client, server, dimensions):
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        client.embed(["1"], dimensions=dimensions)
    assert server.requests == []


def test_a_response_larger_than_grpcs_usual_limit_arrives(client, server):
    row = bytes(4 * 4096)
    server.infer = lambda *_: respond([row] * 1024, [1] * 1024)  # 16 MiB
    assert client.embed(["1"] * 1024, batch_size=1024).embeddings.shape == (1024, 4096)


def test_a_request_larger_than_grpcs_usual_limit_is_sent(client):
    text = "x" * (6 << 20)
    assert client.embed([text]).num_tokens.tolist() == [len(text)]


def test_a_request_never_holds_more_than_32_mib_of_text(client, server):
    text = "x" * (12 << 20)
    assert client.embed([text] * 3).num_tokens.tolist() == [len(text)] * 3
    assert sorted(len(request.raw_input_contents[0]) >> 20 for request in server.requests) == [12, 24]


def test_a_response_for_another_number_of_texts_is_a_server_error(client, server):
    server.infer = lambda *_: respond([bytes(8)], [1])
    with pytest.raises(ServerError, match="num_tokens"):
        client.embed(["1", "2"])


def test_a_response_without_an_output_is_a_server_error(client, server):
    def lacking(*_):
        response = respond([bytes(8)], [1])
        del response.outputs[1], response.raw_output_contents[1]
        return response

    server.infer = lacking
    with pytest.raises(ServerError, match="lacks the raw content of output embedding"):
        client.embed(["1"])


def test_a_width_that_changes_during_a_call_is_a_server_error(client, server):
    server.infer = lambda request, _context: respond([bytes(4 * (1 + int(elements(request)[0])))], [1])
    with pytest.raises(ServerError, match="changed during the call"):
        client.embed(["1", "2"], batch_size=1)


def test_ready_means_that_an_inference_succeeded(client, server):
    assert client.is_ready()
    assert len(server.requests) == 1
    server.close()
    assert not client.is_ready()


def test_info_has_the_server_its_models_and_dimensions(client):
    info = client.info()
    assert (info.name, info.version, info.dimensions) == ("triton", "2.51.0", DIMENSIONS)
    assert [model.name for model in info.models] == ["embedding", "embedder"]
    assert info.models[0].max_batch_size == 1024
    assert info.models[0].inputs[0].shape == (-1, 1)
    assert info.models[1].parameters == {"dimensions": "7"}


def test_info_of_a_server_with_a_hidden_embedder_is_that_of_the_ensemble(client, server):
    server.models = ["embedding"]
    info = client.info()
    assert [model.name for model in info.models] == ["embedding"]
    assert info.dimensions == DIMENSIONS


def test_info_of_a_server_that_cannot_embed_has_no_dimensions(client, server):
    server.infer = lambda _request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
    info = client.info()
    assert (info.name, info.dimensions) == ("triton", None)


def test_a_closed_client_raises_that_it_is_closed(server):
    client = EmbeddingClient(server.target)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.embed(["1"])


def test_the_default_target_is_localhost_50050(monkeypatch):
    seen = []
    monkeypatch.setattr("grpc.insecure_channel", lambda target, _options: seen.append(target))
    monkeypatch.setattr("tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub", lambda _channel: Mock())
    EmbeddingClient()
    assert seen == ["localhost:50050"]


def test_results_are_frozen():
    result = EmbeddingResult(np.empty((0, 1)), np.empty(0, np.int32))
    with pytest.raises(AttributeError):
        result.embeddings = None


def test_an_unknown_option_is_a_type_error(client):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dimension'"):
        client.embed(["1"], dimension=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'truncate'"):
        client.embed_tokens([[1]], truncate="END")


def test_the_parts_of_another_model_have_its_name(server):
    with EmbeddingClient(server.target, model="bge") as client:
        client.embed(["a"])
        client.embed_tokens([[101, 102]])
    assert [request.model_name for request in server.requests] == ["bge", "bge_embedder"]
