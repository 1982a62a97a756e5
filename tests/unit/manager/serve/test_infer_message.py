"""Encoded requests, read and extended without decoding them; protobuf itself is the judge."""

import pytest
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.infer_message import (
    WrongMessage,
    asks_for_timeout,
    field,
    read_id,
    read_timeout,
    varint,
    with_timeout,
)


def encoded(**parameters):
    return infer_request(b"one", b"two", **parameters).SerializeToString()


@pytest.mark.parametrize("seconds", [0.0000001, 0.000001, 0.25, 1, 127e-6, 128e-6, 3600, 1e9, 1e300])
def test_the_time_left_is_added(seconds):
    message = service_pb2.ModelInferRequest.FromString(with_timeout(encoded(truncate="END"), seconds))
    assert message.parameters["timeout"].int64_param == min(max(int(seconds * 1e6), 1), 2**62)
    assert message.parameters["truncate"].string_param == "END"
    del message.parameters["timeout"]
    assert message == infer_request(b"one", b"two", truncate="END")


def test_the_last_one_counts():
    message = service_pb2.ModelInferRequest.FromString(with_timeout(encoded(timeout=60_000_000), 1.5))
    assert message.parameters["timeout"].int64_param == 1_500_000


@pytest.mark.parametrize(("asked", "seconds"), [(2_500_000, 2.5), (1, 1e-6), (0, None), (-5, None)])
def test_the_callers_timeout_is_read(asked, seconds):
    message = encoded(timeout=asked, priority=3)
    assert asks_for_timeout(message)
    assert read_timeout(message) == seconds


def test_of_several_timeouts_the_last_is_read():
    assert read_timeout(encoded(timeout=5) + encoded(timeout=7_000_000)) == 7


def test_a_text_that_looks_like_one_is_none():
    message = infer_request(b'"\x0d\x0a\x07timeout\x12\x02\x10\x05').SerializeToString()
    assert asks_for_timeout(message)
    assert read_timeout(message) is None
    assert not asks_for_timeout(encoded(truncate="END"))


def test_a_timeout_of_another_type_is_not_ours_to_judge():
    with pytest.raises(LookupError):
        read_timeout(encoded(timeout="soon"))


def test_the_id_is_read():
    request = infer_request(b"text")
    assert read_id(request.SerializeToString()) == b""
    request.id = "no. 7"
    assert read_id(request.SerializeToString()) == b"no. 7"


@pytest.mark.parametrize("message", [b"\x22", b"\x22\xff\x01x", b"\x0f", b"\xff" * 12, encoded(timeout=5)[:-3]])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(WrongMessage):
        read_timeout(message)


def test_fields_are_framed_as_protobuf_frames_them():
    response = service_pb2.ModelInferResponse(id="x" * 300)
    framed = field(1, b"wrong") + field(2, response.SerializeToString())
    assert service_pb2.ModelStreamInferResponse.FromString(framed) == service_pb2.ModelStreamInferResponse(
        error_message="wrong", infer_response=response
    )
    assert [varint(number) for number in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]
