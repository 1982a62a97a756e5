"""Encoded answers are checked and counted without decoding them. protobuf encodes the tests' answers."""

import contextlib
import time

import numpy as np
import pytest
from tests.fakes.triton import infer_response
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.request import BrokenAnswer, read_answer


def answer(counts, width=384):
    return infer_response([np.ones(width, np.float32)] * len(counts), counts)


@pytest.mark.parametrize("counts", [[7], [1, 2, 3], list(range(64)), [512] * 1024])
def test_the_tokens_of_an_answer_are_counted(counts):
    assert read_answer(answer(counts).SerializeToString(), len(counts)) == sum(counts)


def test_tokens_are_found_wherever_they_are_in_the_message():
    message = answer([3, 4])
    message.id = "x" * 300
    message.parameters["sequence_id"].int64_param = 5
    turned = service_pb2.ModelInferResponse(model_name="embedding")
    turned.outputs.extend(reversed(message.outputs))
    turned.raw_output_contents.extend(reversed(message.raw_output_contents))
    for known in (message, turned):
        assert read_answer(known.SerializeToString(), 2) == 7


def test_an_answer_with_vectors_alone_has_no_number_of_tokens():
    message = answer([3, 4])
    del message.outputs[1], message.raw_output_contents[1]
    assert read_answer(message.SerializeToString(), 2) == 0


def change(message, of, content):
    message.raw_output_contents[of] = content
    return message


def without(message, *, outputs=(), contents=()):
    for place in outputs:
        del message.outputs[place]
    for place in contents:
        del message.raw_output_contents[place]
    return message


BROKEN = {
    "a vector too few": lambda: answer([3, 4, 5]),
    "a vector too many": lambda: answer([3, 4, 5, 6, 7]),
    "no vectors": lambda: change(answer([3, 4, 5, 6]), 0, b""),
    "a cut vector": lambda: change(answer([1] * 4), 0, answer([1] * 4).raw_output_contents[0][:-1]),
    "vectors of several sizes": lambda: change(answer([1] * 4), 0, (b"\x01\0\0\0a" * 3 + b"\x03\0\0\0abc")),
    "a header that says more": lambda: change(answer([1] * 4), 0, (b"\xff\0\0\0aaaa") * 4),
    "too few numbers of tokens": lambda: change(answer([1] * 4), 1, b"\0" * 12),
    "an output without its content": lambda: without(answer([1] * 4), contents=[1]),
    "a content without its output": lambda: without(answer([1] * 4), outputs=[1]),
    "no outputs": lambda: without(answer([1] * 4), outputs=[1, 0], contents=[1, 0]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_answer_is_not_passed_on(case):
    read_answer(answer([1] * 4).SerializeToString(), 4)
    with pytest.raises(BrokenAnswer):
        read_answer(BROKEN[case]().SerializeToString(), 4)


def test_damaged_answers_are_refused_quickly():
    encoded = answer([3, 4, 5], width=8).SerializeToString()
    for end in range(len(encoded)):
        with pytest.raises(BrokenAnswer):
            read_answer(encoded[:end], 3)
    with pytest.raises(BrokenAnswer):
        read_answer(None, 3)
    random = np.random.default_rng(7)
    for _ in range(2000):
        broken = bytearray(encoded)
        broken[random.integers(len(broken))] = random.integers(256)
        with contextlib.suppress(BrokenAnswer):
            assert read_answer(bytes(broken), 3) >= 0
    began = time.process_time()
    for endless in (b"\x32\x00", b"\x32\xff\xff\xff\xff", b"\x08\x01", b"\xff"):
        with pytest.raises(BrokenAnswer):
            read_answer(endless * 4_000_000, 3)
    assert time.process_time() - began < 1


def scored(content, rows):
    response = service_pb2.ModelInferResponse(model_name="rerank")
    response.outputs.add(name="score", datatype="FP32", shape=[rows, 1])
    response.outputs.add(name="num_tokens", datatype="INT32", shape=[rows, 1])
    response.raw_output_contents[:] = [content, np.full(rows, 5, "<i4").tobytes()]
    return response.SerializeToString()


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_have_any_number_of_labels(labels):
    assert read_answer(scored(np.ones((4, labels), "<f4").tobytes(), 4), 4) == 20


@pytest.mark.parametrize("content", [b"", bytes(12), bytes(15), np.array([1, np.nan, 1, 1], "<f4").tobytes()])
def test_broken_scores_are_refused(content):
    with pytest.raises(BrokenAnswer, match="score"):
        read_answer(scored(content, 4), 4)
