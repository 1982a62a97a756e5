"""Requests that a server must not get are found in their encoded form. protobuf encodes the tests' requests."""

import contextlib
import struct
import time

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as some
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.envelope import MOST_ELEMENTS, read_envelope, read_id, work_of
from tritonembed_manager.router.data.protobuf import MOST_FIELDS, RefusedMessage, WrongMessage, varint
from tritonembed_manager.router.data.window import MOST_PER_ROW

Request = service_pb2.ModelInferRequest
GOOD = struct.pack("<I", 4) + b"text"


def request(raw=(GOOD,), shape=(1, 1), datatype="BYTES", name="text", contents=None):
    made = Request(model_name="embedding", raw_input_contents=raw)
    tensor = made.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents is not None:
        tensor.contents.bytes_contents.extend(contents)
    return made


def output(**parameters):
    made = request()
    asked = made.outputs.add(name="embedding")
    for key, value in parameters.items():
        setattr(asked.parameters[key], "int64_param" if isinstance(value, int) else "string_param", value)
    return made


def in_shared_memory(tensor):
    tensor.parameters["shared_memory_region"].string_param = "of somebody else"


def two_inputs(raw):
    made = request(raw=raw)
    made.inputs.add(name="more", datatype="BYTES", shape=(1, 1))
    return made


REFUSED = {
    "an output with classification": (lambda: output(classification=1), "classification"),
    "classification 0": (lambda: output(classification=0), "classification"),
    "classification as text": (lambda: output(classification="1"), "classification"),
    "classification behind another parameter": (lambda: output(binary_data=1, classification=3), "classification"),
    "a frame that announces 99 bytes and holds 5": (
        lambda: request([struct.pack("<I", 99) + b"abcde"]),
        "input text: its raw content is not 1 elements",
    ),
    "a last frame that is cut": (lambda: request([GOOD + GOOD[:-1]], (2, 1)), "is not 2 elements"),
    "a header that is cut": (lambda: request([GOOD + b"\0\0"]), "is not 1 elements"),
    "fewer elements than the shape": (lambda: request(shape=(2, 1)), "is not 2 elements"),
    "more elements than the shape": (lambda: request([GOOD + GOOD]), "is not 1 elements"),
    "an empty content": (lambda: request([b""]), "is not 1 elements"),
    "a negative size": (lambda: request(shape=(-1, 1)), "a size of its shape is negative"),
    "two negative sizes": (lambda: request(shape=(-1, -1)), "a size of its shape is negative"),
    "an empty batch": (lambda: request([b""], (0, 1)), "it is empty"),
    "a shape beyond all memory": (lambda: request(shape=(2**62, 2**62)), "more than 65536 elements"),
    "a shape of 33 sizes": (lambda: request(shape=(1,) * 33), "its shape has more than 32 sizes"),
    "numbers of another size": (lambda: request([b"\0" * 7], (2,), "INT32"), "7 bytes, its shape and datatype 8"),
    "fewer contents than inputs": (lambda: two_inputs([GOOD]), "2 inputs, and raw_input_contents of 1"),
    "more contents than inputs": (lambda: request([GOOD, GOOD]), "1 inputs, and raw_input_contents of 2"),
    "no content": (lambda: request(()), "input text: it has no content"),
    "contents of another count": (lambda: request((), (2, 1), contents=[b"a"]), "1 elements, its shape 2"),
    "contents beside raw contents": (lambda: request(contents=[b"a"]), "contents and raw_input_contents"),
    "too many elements": (
        lambda: request([b"\0\0\0\0" * (MOST_ELEMENTS + 1)], (MOST_ELEMENTS + 1, 1)),
        "more than 65536 elements",
    ),
    "a model's name of 100 KB": (lambda: Request(model_name="m" * 100_000), "a name in the request has 100000 bytes"),
    "an id of 50 KB": (lambda: Request(id="7" * 50_000), "at most 1024 are allowed"),
    "an input's name of 50 KB": (lambda: request(name="n" * 50_000), "at most 255 are allowed"),
    "a parameter's name of 50 KB": (lambda: infer_request(b"one", **{"p" * 50_000: 1}), "at most 255 are allowed"),
    "a name that is no text": (lambda: request(shape=(2, 1), name="\x1b[31m"), "input ?:"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_harmful_requests_are_refused_in_one_line(case):
    make, reason = REFUSED[case]
    with pytest.raises(RefusedMessage) as refusal:
        read_envelope(make().SerializeToString())
    assert reason in str(refusal.value)
    assert refusal.value.supported
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("of", ["inputs", "outputs"])
def test_requests_that_name_shared_memory_are_refused(of):
    made = output()
    in_shared_memory(getattr(made, of)[0])
    with pytest.raises(RefusedMessage) as refusal:
        read_envelope(made.SerializeToString())
    assert not refusal.value.supported


ANSWERED = {
    "raw content": request,
    "an empty text": lambda: request([b"\0\0\0\0"]),
    "1,024 sentences": lambda: request([GOOD * 1024], (1024, 1)),
    "contents": lambda: request((), contents=[b"text"]),
    "1,024 contents": lambda: request((), (1024, 1), contents=[b"text"] * 1024),
    "other outputs' parameters": lambda: output(binary_data=1),
    "no shape": lambda: request(shape=()),
    "an unknown datatype": lambda: request(datatype="FP8"),
    "numbers": lambda: request([b"\0" * 8], (2, 1), "INT32"),
    "two inputs": lambda: two_inputs([GOOD, GOOD]),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_requests_that_are_right_or_that_triton_refuses_itself_pass(case):
    read_envelope(ANSWERED[case]().SerializeToString())


@pytest.mark.parametrize(("asked", "seconds"), [(2_500_000, 2.5), (1, 1e-6), (0, None), (-5, None)])
def test_the_callers_timeout_is_read(asked, seconds):
    envelope = read_envelope(infer_request(b"one", timeout=asked, priority=3).SerializeToString())
    assert (envelope.timeout, envelope.timed) == (seconds, True)


HUGE = b"x" * (3 * MOST_PER_ROW)
SMALL = b"y" * 1000


def in_contents(*texts):
    return request(raw=(), shape=(len(texts), 1), contents=texts)


def of_chunks(text):
    made = request([struct.pack("<I", len(text)) + text])
    made.model_name = "embedding_chunks"
    return made


@pytest.mark.parametrize("make", [infer_request, in_contents])
@pytest.mark.parametrize(
    ("texts", "work"),
    [
        ([SMALL], len(SMALL)),
        ([HUGE], MOST_PER_ROW),
        ([HUGE, SMALL, HUGE], 2 * MOST_PER_ROW + len(SMALL)),
        ([SMALL] * 500, 500 * len(SMALL)),
        # Room that short texts leave is not a long one's.
        ([*[SMALL] * 500, HUGE], 500 * len(SMALL) + MOST_PER_ROW),
    ],
)
def test_each_text_is_no_more_work_than_the_longest_that_a_model_takes(make, texts, work):
    message = make(*texts).SerializeToString()
    assert work_of(message) == len(message) - read_envelope(message).cut
    assert work <= work_of(message) <= work + 100 + 8 * len(texts)


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (lambda: of_chunks(HUGE), False),
        (lambda: infer_request(HUGE, truncate="CHUNK"), False),
        (lambda: infer_request(HUGE, truncate="END"), True),
    ],
)
def test_all_of_a_text_that_is_embedded_in_chunks_is_work(make, cuts):
    message = make().SerializeToString()
    assert (work_of(message) < len(message)) is cuts


def test_bytes_that_are_no_request_are_all_work():
    assert work_of(HUGE) == len(HUGE)


def test_of_several_timeouts_the_last_is_read():
    message = infer_request(b"one", timeout=5).SerializeToString()
    message += Request(parameters=infer_request(timeout=7_000_000).parameters).SerializeToString()
    assert read_envelope(message).timeout == 7


def test_a_text_that_looks_like_a_timeout_is_not_read_as_one():
    assert read_envelope(infer_request(b'"\x0d\x0a\x07timeout\x12\x02\x10\x05').SerializeToString()).timeout is None


def test_a_timeout_of_another_type_is_left_to_triton():
    envelope = read_envelope(infer_request(b"one", timeout="soon").SerializeToString())
    assert (envelope.timeout, envelope.timed) == (None, False)


def test_only_id_and_timeout_are_cut_out_for_comparison():
    def rest(**parameters):
        made = infer_request(b"one", truncate="END", **parameters)
        made.id = str(parameters)
        message = made.SerializeToString()
        kept = bytearray(message)
        for begin, end in reversed(read_envelope(message).own):
            del kept[begin:end]
        return Request.FromString(bytes(kept))

    assert rest(timeout=5) == rest(timeout=7_000_000) == rest() == infer_request(b"one", truncate="END")


def test_the_id_is_read():
    made = infer_request(b"text")
    assert read_id(made.SerializeToString()) == b""
    made.id = "no. 7"
    assert read_id(made.SerializeToString()) == b"no. 7"
    assert read_id(b"\x22\xff\x01x") == b""


@pytest.mark.parametrize("id", [b"\xed\x62", b"i" * 1025])
def test_an_id_that_no_answer_can_repeat_is_dropped(id: bytes):
    message = b"\x1a" + varint(len(id)) + id
    assert read_id(message) == b""


NO_UTF8 = [b"\x0a\x02\xed\x62", b"\x1a\x01\xff", b"\x22\x03\x0a\x01\xff", b"\x22\x08\x0a\x01a\x12\x03\x1a\x01\xff"]
UNREADABLE = {
    "a size of a shape that does not end": b"\x2a\x03\x1a\x01\x81",
    "a parameter's value that is none": b"\x22\x06\x0a\x01a\x12\x01\x74",
    "the value of an output's parameter": b"\x32\x08\x12\x06\x0a\x01a\x12\x01\x74",
    "numbers that do not end": b"\x2a\x05\x2a\x03\x12\x01\x81",
    "half a float": b"\x2a\x06\x2a\x04\x32\x02\0\0",
}
"""Triton answers such messages with INTERNAL, as if the fault were its own."""


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE)
def test_messages_that_triton_cannot_parse_are_refused(message: bytes):
    with pytest.raises(DecodeError):
        Request.FromString(message)
    with pytest.raises(WrongMessage):
        read_envelope(message)


@pytest.mark.parametrize("where", ["model_name", "model_version", "id", "input", "output", "parameter"])
def test_a_nul_byte_in_a_name_is_refused(where: str):
    made = infer_request(b"text")
    if where == "input":
        made.inputs[0].name = "text\0"
    elif where == "output":
        made.outputs.add(name="embedding\0")
    elif where == "parameter":
        made.parameters["truncate\0"].string_param = "END"
    else:
        setattr(made, where, "1\0")
    with pytest.raises(RefusedMessage, match="NUL"):
        read_envelope(made.SerializeToString())


NO_MESSAGE = [*NO_UTF8, b"\x22", b"\x22\xff\x01x", b"\x0f", b"\xff" * 12, b"\x00\x01", b"\x0b\x0c", GOOD]


@pytest.mark.parametrize("message", [*NO_MESSAGE, infer_request(b"one", timeout=5).SerializeToString()[:-3]])
def test_bytes_that_are_no_message_are_refused(message):
    with pytest.raises(WrongMessage):
        read_envelope(message)


@given(some.binary(max_size=200), some.integers(0, 200), some.binary(max_size=20))
def test_whatever_passes_is_a_message_with_whole_tensors(noise, place, patch):
    good = infer_request(b"one", b"two words", timeout=5).SerializeToString()
    for message in (noise, good[:place] + patch + good[place + len(patch) :], good[:place] + patch + good[place:]):
        try:
            read_envelope(message)
        except ValueError:
            continue
        decoded = Request.FromString(message)
        assert not any("classification" in asked.parameters for asked in decoded.outputs)
        for tensor, content in zip(decoded.inputs, decoded.raw_input_contents, strict=False):
            if tensor.datatype == "BYTES":
                at = 0
                while at < len(content):
                    at += 4 + int.from_bytes(content[at : at + 4], "little")
                assert at == len(content)


def numbers(content):
    """A message whose input has these int_contents."""
    contents = b"\x12" + _varint(len(content)) + content
    tensor = b"\x2a" + _varint(len(contents)) + contents
    return b"\x2a" + _varint(len(tensor)) + tensor


@pytest.mark.parametrize("before", [0, 1, 9, (1 << 18) - 5, 1 << 18])
def test_a_number_that_is_too_long_is_found_wherever_it_stands(before):
    with pytest.raises(WrongMessage, match="within a number"):
        read_envelope(numbers(b"\x05" * before + b"\x80" * 10 + b"\1" + b"\x05" * 20))
    with pytest.raises(RefusedMessage, match="raw_input_contents of 2"):
        read_envelope(numbers(b"\x05" * before + b"\x80" * 9 + b"\1" + b"\x05" * 20 + b"\x05") + b"\x3a\0\x3a\0")


@pytest.mark.parametrize("number", [b"\x05", b"\x80" * 9 + b"\1"])
def test_numbers_of_a_large_message_do_not_keep_the_event_loop_busy(number):
    message = numbers(number * (62_000_000 // len(number)))
    took = []
    for _ in range(3):
        began = time.thread_time()
        with contextlib.suppress(RefusedMessage):
            read_envelope(message)
        took.append(time.thread_time() - began)
    assert min(took) < 0.3


BOMBS = {
    "three-byte fields": b"\x1a\x01x" * 21_000_000,
    "three-byte fields of an input": None,
    "empty elements": None,
    "contents": None,
}


def bomb(kind):
    if kind == "three-byte fields of an input":
        inner = b"\x0a\x01x" * 5_000_000
        return b"\x2a" + _varint(len(inner)) + inner
    if kind == "empty elements":
        return request([b"\0\0\0\0" * 4_000_000], (4_000_000, 1)).SerializeToString()
    if kind == "contents":
        return request((), (1_000_000, 1), contents=[b""] * 1_000_000).SerializeToString()
    return BOMBS[kind]


def _varint(number):
    from tritonembed_manager.router.data.protobuf import varint

    return varint(number)


@pytest.mark.parametrize("kind", BOMBS)
def test_no_message_keeps_the_event_loop_busy(kind):
    message = bomb(kind)
    took = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises(RefusedMessage):
            read_envelope(message)
        took.append(time.thread_time() - began)
    # The refusal takes 5 ms on an idle core. Reading the whole message would take seconds.
    assert min(took) < 0.1
    assert MOST_FIELDS <= 4096
