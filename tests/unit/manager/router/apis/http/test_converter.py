"""Another process reads large bodies: correctly, within bounds, and without delaying other requests."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.http.conversions import COMMAND, CONVERSIONS
from tritonembed_manager.router.apis.http.converter import LARGE_BINARY, LARGE_JSON, Converter
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError

NAMES = {"names": asdict(ServedNames(("a-model",)))}


@pytest.fixture
async def converter():
    made = Converter(CONVERSIONS, COMMAND, timeout=60.0)
    yield made
    await made.close()


def openai(converter, body, cut=65536):
    text = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return converter.convert("openai", [text[at : at + cut] for at in range(0, len(text), cut)], **NAMES)


def infer(converter, body, header_length=None):
    return converter.convert(
        "kserve",
        [body],
        json_size=header_length,
        header_length=header_length,
        model="embedding",
        version="",
        served={"name": "embedding"},
    )


def texts_of(message):
    [content] = service_pb2.ModelInferRequest.FromString(message).raw_input_contents
    found, at = [], 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        found.append(content[at + 4 : end].decode())
        at = end
    return found


async def test_a_large_body_becomes_the_same_requests_as_its_parts(converter):
    texts = [f"{number} ä€😀 {'word ' * (number % 50)}" for number in range(5000)]
    random.Random(1).shuffle(texts)
    body = {"input": texts, "dimensions": 5, "encoding_format": "base64"}
    assert len(json.dumps(body, ensure_ascii=False).encode()) > LARGE_JSON
    done = await openai(converter, body)
    assert converter._process is not None
    assert (done.info["as_base64"], done.info["by_ids"]) == (True, False)
    assert done.info["counts"] == [1024] * 4 + [904]
    assert [text for message in done.messages for text in texts_of(message)] == texts
    for message in done.messages:
        assert service_pb2.ModelInferRequest.FromString(message).parameters["dimensions"].int64_param == 5
    small = await openai(converter, {"input": texts[:3]})
    assert texts_of(small.messages[0]) == texts[:3]


async def test_kserves_json_and_binary_bodies(converter):
    texts = ["word " * 40] * 1024
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1024, 1]}
    body = json.dumps({"inputs": [{**tensor, "data": texts * 2, "shape": [2048, 1]}], "outputs": []}).encode()
    with pytest.raises(BadRequest, match="not text"):
        await infer(converter, body)
    body = body[:-1] + b', "parameters": {"binary_data_output": true}}'
    done = await infer(converter, body)
    assert texts_of(done.messages[0]) == texts * 2
    assert (done.info["binary"], done.info["binary_by_default"]) == ({}, True)
    content = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts) * 30
    head = {"inputs": [{**tensor, "shape": [1024 * 30, 1], "parameters": {"binary_data_size": len(content)}}]}
    head["parameters"] = {"binary_data_output": True}
    encoded = json.dumps(head).encode()
    assert len(content) > LARGE_BINARY
    done = await infer(converter, encoded + content, len(encoded))
    assert texts_of(done.messages[0]) == texts * 30


WRONG = [
    (b"[" + b"1," * 200_000 + b"1]", "not a JSON object", 400),
    (b'{"input": "' + b"a" * 300_000, "not JSON", 400),
    (b'{"input": "\xff' + b"a" * 300_000 + b'"}', "UTF-8", 400),
    (b"[" * 300_000, "nested too deep", 400),
    (b'{"input": [' + b"[]," * 200_000 + b"[]]}", "at most 32768 are allowed", 400),
    (b'{"input": "\\ud800' + b"a" * 300_000 + b'"}', "surrogate", 400),
    (b'{"nput": "' + b"a" * 300_000 + b'"}', "input", 400),
]


async def test_errors_have_the_same_text_as_for_a_small_body(converter):
    for body, words, status in WRONG:
        with pytest.raises(BadRequest) as caught:
            await openai(converter, body)
        assert words in caught.value.message
        assert caught.value.status == status
    # The process keeps running.
    assert (await openai(converter, {"input": ["a" * 300_000]})).info["counts"] == [1]


async def test_json_that_takes_too_much_memory_is_refused():
    start, option, code = COMMAND
    converter = Converter(CONVERSIONS, (start, option, code.replace("argv[1:])", "argv[1:]), 100 << 20")), 60.0)
    with pytest.raises(BadRequest) as caught:
        await openai(converter, b'{"input": [' + b"[]," * 2_000_000 + b"[]]}", cut=1 << 20)
    assert caught.value.status == 413
    assert (await openai(converter, {"input": ["a" * 300_000]})).info["counts"] == [1]
    await converter.close()


async def test_a_process_that_dies_is_an_error_of_one_request_and_replaced(converter):
    await openai(converter, {"input": ["a" * 300_000]})
    first = converter._process._process.pid
    asked = asyncio.ensure_future(openai(converter, {"input": ["a" * 3_000_000] * 10}))
    await asyncio.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(DispatchError):
        await asked
    assert (await openai(converter, {"input": ["a" * 300_000]})).info["counts"] == [1]
    assert converter._process._process.pid != first


async def test_a_process_that_hangs_is_ended_at_the_limit():
    converter = Converter(CONVERSIONS, (sys.executable, "-c", "import time; time.sleep(60)"), timeout=0.5)
    with pytest.raises(DispatchError, match=r"0\.5 s"):
        await openai(converter, {"input": ["a" * 300_000]})
    assert converter._process is None


async def test_the_process_ends_with_its_worker(converter):
    await openai(converter, {"input": ["a" * 300_000]})
    process = converter._process._process
    await converter.close()
    assert process.returncode is not None


def test_a_worker_that_dies_meanwhile_causes_no_traceback():
    ours, theirs = socket.socketpair()
    file = os.memfd_create("messages")
    body = b'{"input": "a text"}'
    asked = {"kind": "openai", "size": len(body), "arguments": NAMES}
    with theirs:
        command = [*COMMAND, str(theirs.fileno()), str(file)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno(), file], stderr=subprocess.PIPE)
    ours.sendall(json.dumps(asked).encode() + b"\n" + body)
    ours.close()
    os.close(file)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


async def test_a_large_body_does_not_delay_other_requests(converter):
    """This is measured by this thread's own CPU time, which a busy machine does not lengthen."""
    await openai(converter, {"input": ["a" * 300_000]})
    body = json.dumps({"input": ["word " * 400] * 15_000}).encode()
    # A collection of garbage may lengthen a turn once.
    for _ in range(3):
        if (longest := await longest_turn_beside(converter, body)) < 0.1:
            break
    assert longest < 0.1


async def longest_turn_beside(converter, body):
    """Of this thread's own CPU time, in seconds, while the converter reads the body."""
    longest = 0.0

    async def turns():
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    turning = asyncio.ensure_future(turns())
    chunks = [body[at : at + 65536] for at in range(0, len(body), 65536)]
    done = await converter.convert("openai", chunks, **NAMES)
    turning.cancel()
    assert sum(done.info["counts"]) == 15_000
    return longest
