"""`num_tokens` is asked for, and left out again."""

import pytest
from tests.fakes.triton import infer_request, infer_response, vector
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.tenant_dispatcher import asked, with_count, without_count

COUNTED = (b"embedding", b"embedding_chunks", b"embedder")


def request(*outputs, model="embedding", text=b"a text with num_tokens in it"):
    message = infer_request(text)
    message.model_name = model
    for output in outputs:
        message.outputs.add(name=output)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (request(), ("embedding", False)),
        (request("embedding"), ("embedding", True)),
        (request("embedding", "num_tokens"), ("embedding", False)),
        (request("embedding", model="embedder"), ("embedder", True)),
        (request("token_ids", model="tokenizer"), ("tokenizer", False)),
        (request("x", model="other"), ("other", False)),
    ],
)
def test_only_requests_that_leave_the_count_out_get_it(message, expected):
    assert asked(message, COUNTED) == expected


def test_the_request_asks_for_it_too():
    outputs = service_pb2.ModelInferRequest.FromString(with_count(request("embedding"))).outputs
    assert [output.name for output in outputs] == ["embedding", "num_tokens"]


@pytest.mark.parametrize("swap", [False, True])
def test_the_answer_is_the_same_without_it(swap):
    answer = infer_response([vector(b"a"), vector(b"b")], [3, 4])
    expected = service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    del expected.outputs[1], expected.raw_output_contents[1]
    if swap:
        swapped, contents = list(answer.outputs)[::-1], list(answer.raw_output_contents)[::-1]
        swapped = [type(one).FromString(one.SerializeToString()) for one in swapped]
        del answer.outputs[:], answer.raw_output_contents[:]
        answer.outputs.extend(swapped)
        answer.raw_output_contents.extend(contents)
    assert service_pb2.ModelInferResponse.FromString(without_count(answer.SerializeToString())) == expected


def test_an_answer_that_has_none_stays():
    answer = infer_response([vector(b"a")], [3])
    del answer.outputs[1], answer.raw_output_contents[1]
    encoded = answer.SerializeToString()
    assert without_count(encoded) == encoded


def test_bytes_that_are_no_request_are_a_value_error():
    with pytest.raises(ValueError, match="past the end"):
        asked(b"\x0a\xff", COUNTED)
