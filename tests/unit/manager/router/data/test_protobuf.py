"""Encoded requests are extended without decoding them. protobuf decodes the results."""

import pytest
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.protobuf import (
    WrongMessage,
    field,
    parameter,
    read_varint,
    text_parameter,
    varint,
    with_timeout,
)


def encoded(**parameters):
    return infer_request(b"one", b"two", **parameters).SerializeToString()


@pytest.mark.parametrize("seconds", [0.0000001, 0.000001, 0.25, 1, 127e-6, 128e-6, 3600, 1e9, 1e300])
def test_the_remaining_time_is_added(seconds):
    message = service_pb2.ModelInferRequest.FromString(with_timeout(encoded(truncate="END"), seconds))
    assert message.parameters["timeout"].int64_param == min(max(int(seconds * 1e6), 1), 2**62)
    assert message.parameters["truncate"].string_param == "END"
    del message.parameters["timeout"]
    assert message == infer_request(b"one", b"two", truncate="END")


def test_the_last_timeout_counts():
    message = service_pb2.ModelInferRequest.FromString(with_timeout(encoded(timeout=60_000_000), 1.5))
    assert message.parameters["timeout"].int64_param == 1_500_000


def test_the_last_text_of_a_parameter_is_read_and_nothing_else():
    message = encoded(adapter="law", truncate="adapter")
    assert text_parameter(message, "adapter") == "law"
    assert text_parameter(message + parameter("adapter", "med"), "adapter") == "med"
    assert text_parameter(encoded(truncate="adapter"), "adapter") == ""
    assert text_parameter(encoded(adapter=3), "adapter") == ""
    assert text_parameter(b"\xffadapter", "adapter") == ""
    assert text_parameter(message + b"\x22\xff", "adapter") == ""


def test_fields_are_framed_as_protobuf_frames_them():
    response = service_pb2.ModelInferResponse(id="x" * 300)
    framed = field(1, b"wrong") + field(2, response.SerializeToString())
    assert service_pb2.ModelStreamInferResponse.FromString(framed) == service_pb2.ModelStreamInferResponse(
        error_message="wrong", infer_response=response
    )
    assert [varint(number) for number in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1])
def test_a_number_is_read_as_it_was_written(number):
    assert read_varint(b"x" + varint(number) + b"y", 1) == (number, 1 + len(varint(number)))


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff" * 12])
def test_a_number_without_an_end_is_refused(content):
    with pytest.raises(WrongMessage):
        read_varint(content, 0)
