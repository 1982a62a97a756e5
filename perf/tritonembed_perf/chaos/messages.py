"""Hostile ModelInfer messages."""

import random
from collections.abc import Callable
from functools import cache

from tritonclient.grpc import service_pb2

from tritonembed_perf.chaos.attack import ANSWERED, ANYTHING_BUT_A_FAULT, CANARY, LATE, NAMED_WRONG, REFUSED, TOO_MUCH
from tritonembed_protocol.framing import frame

Make = Callable[[random.Random], bytes]
_TEXT = f"a {CANARY} sentence".encode()
_MIB = 1 << 20


def good_message(texts: tuple[bytes, ...] = (_TEXT,)) -> service_pb2.ModelInferRequest:
    """A message that is answered."""
    message = service_pb2.ModelInferRequest(model_name="embedding")
    message.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    message.raw_input_contents.append(frame(list(texts)))
    return message


def _bytes(message: service_pb2.ModelInferRequest) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


def _shaped(shape: list[int], content: bytes, datatype: str = "BYTES", name: str = "text") -> bytes:
    message = service_pb2.ModelInferRequest(model_name="embedding")
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(content)
    return _bytes(message)


def classification(rng: random.Random) -> bytes:
    """Triton's classification extension, which the service refuses."""
    message = good_message()
    output = message.outputs.add(name=rng.choice(("embedding", "num_tokens")))
    kind = rng.choice(("int64_param", "string_param", "uint64_param", "bool_param", "double_param"))
    values = {"int64_param": rng.choice((-1, 0, 1, 5, 2**40)), "string_param": "1", "uint64_param": 1}
    setattr(output.parameters["classification"], kind, values.get(kind, 1))
    return _bytes(message)


def lying_frame(rng: random.Random) -> bytes:
    """A frame whose length exceeds its content, alone or after good frames."""
    held = rng.choice((b"", b"hello", _TEXT))
    lie = rng.choice((99, len(held) + 1, 2**31, 2**32 - 1)).to_bytes(4, "little") + held
    before = rng.choice((0, 1, 15))
    return _shaped([before + 1, 1], frame([_TEXT] * before) + lie)


def wrong_count(rng: random.Random) -> bytes:
    """Shapes that do not fit the content."""
    held = rng.choice((0, 1, 2, 16))
    shape = rng.choice(
        ([held + 1, 1], [1, held + 2], [held], [held, 1, 1], [], [-1, 1], [0, 1], [2**62, 1], [-(2**63), 1], [2**32, 1])
    )
    return _shaped(shape, frame([_TEXT] * held))


def too_many(rng: random.Random) -> bytes:
    """More sentences than a request may have."""
    count = rng.choice((1025, 5000, 50_000))
    return _shaped([count, 1], frame([b"a"] * count))


def wrong_tensor(rng: random.Random) -> bytes:
    """Wrong names and datatypes, and wrong numbers of inputs and contents."""
    message = good_message()
    kind = rng.randrange(9)
    if kind == 0:
        message.inputs[0].name = rng.choice(("", "texts", "TEXT", "text\0", "embedding", "x" * 100_000))
    elif kind == 1:
        message.inputs[0].datatype = rng.choice(("", "INT32", "FP32", "STRING", "BF16", "bytes"))
    elif kind == 2:
        del message.inputs[:]
    elif kind == 3:
        message.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    elif kind == 4:
        del message.raw_input_contents[:]
    elif kind == 5:
        message.raw_input_contents.append(b"more")
    elif kind == 6:
        message.inputs[0].contents.bytes_contents.append(_TEXT)
    elif kind == 7:
        message.inputs[0].contents.fp32_contents.extend([1.0] * 10)
        del message.raw_input_contents[:]
    else:
        message.outputs.add(name=rng.choice(("", "embeddings", "text", "x" * 100_000)))
    return _bytes(message)


def shared_memory(rng: random.Random) -> bytes:
    """Regions of shared memory that are not registered."""
    message = good_message()
    place = message.inputs[0] if rng.random() < 0.5 else message.outputs.add(name="embedding")
    place.parameters["shared_memory_region"].string_param = rng.choice(("region", "", "/dev/shm/x"))
    place.parameters["shared_memory_byte_size"].int64_param = rng.choice((0, 64, -1, 2**62))
    if rng.random() < 0.5:
        del message.raw_input_contents[:]
    return _bytes(message)


def wrong_parameter(rng: random.Random) -> bytes:
    """Parameter values that the engine has to refuse."""
    message = good_message()
    name, value = rng.choice(
        (
            ("truncate", "LEFT"),
            ("truncate", 3),
            ("input_type", "question"),
            ("dimensions", 0),
            ("dimensions", -5),
            ("dimensions", 2**62),
            ("dimensions", "ten"),
            ("embedding_type", "int4"),
            ("embedding_type", "x" * 100_000),
            ("normalize", "maybe"),
        )
    )
    kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else "string_param"
    setattr(message.parameters[name], kind, value)
    return _bytes(message)


def odd_parameter(rng: random.Random) -> bytes:
    """Triton's own parameters, and unknown parameters."""
    message = good_message()
    name = rng.choice(
        (
            *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"),
            *("triton_enable_empty_final_response", "triton_x", "", "\0", "x-nobody", "n" * 50_000),
        )
    )
    value = message.parameters[name]
    kind = rng.randrange(5)
    if kind == 0:
        value.int64_param = rng.choice((-1, 0, 1, 2**63 - 1, -(2**63)))
    elif kind == 1:
        value.uint64_param = rng.choice((0, 1, 2**64 - 1))
    elif kind == 2:
        value.bool_param = True
    elif kind == 3:
        value.double_param = rng.choice((float("nan"), float("inf"), -1.5))
    else:
        value.string_param = rng.choice(("", "1", "x" * 50_000))
    return _bytes(message)


def wrong_name(rng: random.Random) -> bytes:
    """Wrong model names, model versions and request ids."""
    message = good_message()
    kind = rng.randrange(3)
    if kind == 0:
        names = ("", "embedding\0", "embedding/../embedder", "../../etc", "%00", "x" * 1_000_000, "\x1b[31m")
        message.model_name = rng.choice(names)
    elif kind == 1:
        message.model_version = rng.choice(("999", "-1", "abc", "1\0", "9" * 1000, "latest"))
    else:
        message.id = rng.choice(("x" * 1_000_000, "a\nb\r\nc", "\0", "\x1b[2J"))
    return _bytes(message)


def wrong_text(rng: random.Random) -> bytes:
    """Texts that are not UTF-8, empty, very long, or made of control bytes."""
    text = rng.choice((b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"", b"\0" * 50, b"a" * 300_000, b"\xf0\x9f\x98" * 9))
    return _bytes(good_message((_TEXT, text)))


def inner_model(rng: random.Random) -> bytes:
    """A request to the ensemble's `embedder`, with ids that no tokenizer makes."""
    message = service_pb2.ModelInferRequest(model_name="embedder")
    ids = rng.choice((b"", b"\1", b"\xff" * 400, (2**31 - 1).to_bytes(4, "little"), bytes(4 * 5000), b"\1\0\0\0" * 3))
    count = rng.choice((1, 3))
    message.inputs.add(name="token_ids", datatype="BYTES", shape=[count, 1])
    message.raw_input_contents.append(frame([ids] * count))
    return _bytes(message)


def flipped(rng: random.Random) -> bytes:
    """A good message with some bits flipped."""
    message = bytearray(_bytes(good_message((_TEXT, b"another one"))))
    for _ in range(rng.choice((1, 2, 8))):
        message[rng.randrange(len(message))] ^= 1 << rng.randrange(8)
    return bytes(message)


def cut(rng: random.Random) -> bytes:
    """A good message without its end."""
    message = _bytes(good_message((_TEXT, b"another one")))
    return message[: rng.randrange(len(message))]


def noise(rng: random.Random) -> bytes:
    """Random bytes."""
    return rng.randbytes(rng.choice((0, 1, 10, 1000, 100_000)))


def many_fields(rng: random.Random) -> bytes:
    """Hundreds of thousands of unknown fields of three bytes, and a `timeout`, which the manager has to find."""
    message = good_message()
    message.parameters["timeout"].int64_param = 5_000_000
    return _bytes(message) + b"\xf8\x07\x01" * rng.choice((100_000, 1_000_000, 5_000_000))


def many_entries(rng: random.Random) -> bytes:
    """20,000 parameters, inputs, outputs or contents."""
    return _with_entries(rng.choice(("parameters", "inputs", "outputs", "contents")))


@cache
def _with_entries(kind: str) -> bytes:
    # Cached, because the good callers run in this process, too.
    message = good_message()
    for number in range(20_000):
        if kind == "parameters":
            message.parameters[f"p{number}"].int64_param = number
        elif kind == "inputs":
            message.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        elif kind == "outputs":
            message.outputs.add(name="embedding")
        else:
            message.raw_input_contents.append(b"")
    return _bytes(message)


def large_text(_rng: random.Random) -> bytes:
    """More text than a request may have."""
    return _bytes(good_message((b"word " * (33 * _MIB // 5),)))


MESSAGES: dict[str, tuple[Make, frozenset[str], float]] = {
    "classification of an output": (classification, REFUSED, 1.0),
    "a frame that lies": (lying_frame, REFUSED, 2.0),
    "a shape that does not fit": (wrong_count, REFUSED, 2.0),
    "too many sentences": (too_many, REFUSED, 0.5),
    "wrong tensors": (wrong_tensor, NAMED_WRONG, 2.0),
    "shared memory": (shared_memory, NAMED_WRONG, 1.0),
    "a wrong parameter": (wrong_parameter, REFUSED, 1.0),
    # A timeout of 1 µs expires. A priority, an unknown name or a sequence's parameter is answered or refused.
    "an odd parameter": (odd_parameter, NAMED_WRONG | ANSWERED | LATE, 2.0),
    "a wrong name": (wrong_name, NAMED_WRONG | ANSWERED, 1.0),
    "wrong text": (wrong_text, REFUSED | ANSWERED, 1.0),
    "ids for the embedder": (inner_model, NAMED_WRONG | ANSWERED, 1.0),
    "flipped bits": (flipped, ANYTHING_BUT_A_FAULT, 3.0),
    "a message without its end": (cut, NAMED_WRONG | ANSWERED, 2.0),
    "noise": (noise, NAMED_WRONG, 1.0),
    "many fields": (many_fields, REFUSED | ANSWERED | TOO_MUCH | LATE, 0.3),
    "many entries": (many_entries, REFUSED | ANSWERED | TOO_MUCH | LATE, 0.3),
    "a large text": (large_text, REFUSED | TOO_MUCH | LATE, 0.1),
}
"""Per kind: how to make a message, the allowed outcomes, and the weight in the random choice."""
