"""Attacks with an HTTP client: bodies, headers and paths that a server must refuse."""

import gzip
import json
import random
import zlib
from functools import cache
from typing import Any

import aiohttp
from yarl import URL

from tritonembed_perf.chaos.attack import (
    ANSWERED,
    ANYTHING_BUT_A_FAULT,
    CANARY,
    NAMED_WRONG,
    REFUSED,
    TOO_MUCH,
    Attack,
    AttackTarget,
)
from tritonembed_protocol.framing import frame

_INFER = "/v2/models/embedding/infer"
_OPENAI = "/v1/embeddings"
_MIB = 1 << 20


async def _post(
    target: AttackTarget, path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[str, str]:
    url = URL(target.url + path, encoded=True)
    try:
        async with target.session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
            text = await answer.read()
            return str(answer.status), text[:500].decode(errors="replace") if answer.status >= 400 else ""
    except (aiohttp.ClientConnectionError, ConnectionError):
        return "closed", ""


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _infer(shape: list[int] | None = None, **outputs: Any) -> dict[str, Any]:
    text = {"name": "text", "datatype": "BYTES", "shape": shape or [1, 1], "data": [f"a {CANARY} text"]}
    return {"inputs": [text], "outputs": [{"name": "embedding", "parameters": {"binary_data": True, **outputs}}]}


async def classification(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Triton's classification extension, with JSON and with binary tensors."""
    asked = _infer(classification=rng.choice((1, 3, -1, 0, "1", True, 1.5)))
    if rng.random() < 0.5:
        return await _post(target, _INFER, _json(asked))
    content = frame([b"a text"])
    asked["inputs"] = [
        {"name": "text", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(content)}}
    ]
    header = _json(asked)
    return await _post(target, _INFER, header + content, {"Inference-Header-Content-Length": str(len(header))})


async def wrong_json(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """JSON that is cut, has flipped bits, is nested deeply, or is not JSON at all."""
    path, good = rng.choice(
        ((_INFER, _json(_infer())), (_OPENAI, _json({"model": target.model, "input": [f"a {CANARY}"] * 3})))
    )
    kind = rng.randrange(6)
    body = bytearray(good)
    if kind == 0:
        del body[rng.randrange(len(body)) :]
    elif kind == 1:
        for _ in range(3):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        body = bytearray(b"[" * 100_000)
    elif kind == 3:
        body = bytearray(b'{"input": ' + b"9" * 10_000 + b"}")
    elif kind == 4:
        body = bytearray(rng.randbytes(200))
    else:
        body = bytearray(good.replace(CANARY.encode(), b"\\ud800"))
    return await _post(target, path, bytes(body), {"Content-Type": "application/json"})


async def wrong_inputs(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Inputs with wrong names, shapes, datatypes, data or parameters."""
    asked = _infer()
    tensor = asked["inputs"][0]
    key, value = rng.choice(
        (
            ("shape", [2, 1]),
            ("shape", [-1, 1]),
            ("shape", [2**62, 2**62]),
            ("shape", [1]),
            ("shape", "1"),
            ("shape", [True, 1]),
            ("datatype", "FP32"),
            ("datatype", 5),
            ("name", "texts"),
            ("name", None),
            ("data", [["a", "b"], "c"]),
            ("data", [1]),
            ("data", [None]),
            ("data", "a text"),
            ("data", {}),
            ("parameters", {"binary_data_size": 2**40}),
            ("parameters", {"shared_memory_region": "r"}),
            ("parameters", []),
        )
    )
    tensor[key] = value
    return await _post(target, _INFER, _json(asked))


async def binary_frames(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """The binary extension with wrong sizes and wrong frames."""
    content = (99).to_bytes(4, "little") + b"hello"
    size = rng.choice((len(content), len(content), 0, 1, -1, 2**40))
    text = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    header = _json({"inputs": [text], "outputs": _infer()["outputs"]})
    length = rng.choice((str(len(header)),) * 4 + ("-1", "abc", "1e3", "9" * 30, str(len(header) + 10**6), "5"))
    return await _post(target, _INFER, header + content, {"Inference-Header-Content-Length": length})


async def openai(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """OpenAI's fields with invalid values."""
    asked: dict[str, Any] = {"model": target.model, "input": f"a {CANARY} text"}
    key, value = rng.choice(
        (
            ("model", 5),
            ("model", "no-such-model"),
            ("model", None),
            ("input", []),
            ("input", ""),
            ("input", None),
            ("input", [["a"]]),
            ("input", [1, "a"]),
            ("input", ["a"] * 3000),
            ("input", {"text": "a"}),
            ("input", [2**40]),
            ("dimensions", 0),
            ("dimensions", 10**9),
            ("dimensions", "5"),
            ("encoding_format", "hex"),
            ("encoding_format", ["float"]),
            ("user", 7),
            ("no_such_field", 1),
        )
    )
    asked[key] = value
    return await _post(target, _OPENAI, _json(asked), {"Content-Type": "application/json"})


async def large_json(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Megabytes of numbers, small strings or objects, and deep nesting."""
    path, body = rng.choice(_large_bodies())
    return await _post(target, path, body, {"Content-Type": "application/json"})


@cache
def _large_bodies() -> list[tuple[str, bytes]]:
    # Cached, because the good callers run in this process, too.
    return [
        (_OPENAI, b'{"model": "m", "input": [' + b",".join([b"1"] * 1_000_000) + b"]}"),
        (_OPENAI, b'{"model": "m", "input": [' + b",".join([b'"a"'] * 500_000) + b"]}"),
        (_INFER, b'{"inputs": [' + b",".join([b"{}"] * 500_000) + b"]}"),
        (_INFER, b'{"inputs": [], "x": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"),
    ]


@cache
def _bombs() -> list[tuple[str, bytes]]:
    return [("gzip", gzip.compress(bytes(80 * _MIB), 1)), ("deflate", zlib.compress(b" " * (70 * _MIB), 1))]


async def encodings(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Bodies that do not match Content-Encoding, cut bodies, and decompression bombs."""
    good = _json(_infer())
    encoding, body = rng.choice(
        (
            ("br", good),
            ("gzip", good),
            ("gzip", gzip.compress(good)[:-9]),
            ("deflate", rng.randbytes(100)),
            ("gzip, gzip", gzip.compress(gzip.compress(good))),
            ("identity, x", good),
            *_bombs(),
        )
    )
    return await _post(target, _INFER, body, {"Content-Encoding": encoding})


async def paths(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Paths with invalid names, dot segments or unknown versions, and very long paths."""
    path = rng.choice(
        (
            "/v2/models/embedding%00x/infer",
            "/v2/models/embedding%2f..%2fembedder/infer",
            "/v2/models/../models/embedder/infer",
            "/v2/models/%ff%fe/infer",
            "/v2/models//infer",
            "/v2/models/embedding/versions/99999999999999999999/infer",
            "/v2/models/embedding/versions/7/infer",
            "/v2/models/%1b[31membedding/infer",
            "/v2/models/" + "x" * 5000 + "/infer",
            "/v1/%2e%2e/v2/embeddings",
            "/" + "a" * 30_000,
            f"/v1/embeddings%00?api_key={CANARY}",
        )
    )
    return await _post(target, path, _json(_infer()))


async def administration(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Requests that change servers, as a foreign web page can send them."""
    path, body = rng.choice(
        (
            ("/v2/logging", {"log_info": False}),
            ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
            ("/v2/repository/models/embedding/unload", {}),
            ("/v2/repository/models/embedding/load", {}),
            ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 9}),
        )
    )
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    return await _post(target, path, _json(body), headers)


async def methods(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Methods that a path does not have."""
    method = rng.choice(("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"))
    return await _post(target, rng.choice((_INFER, _OPENAI, "/status", "/metrics")), b"", method=method)


async def headers_(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Many headers, large headers, and headers that are forwarded to a server as metadata."""
    headers = rng.choice(
        (
            {"X-Large": "v" * 7000},
            {"X-Large": "v" * 60_000},
            {f"X-{number}": CANARY for number in range(300)},
            {"traceparent": "00-zz-yy-01"},
            {"traceparent": "x" * 4000},
            {"tracestate": "caf\xe9"},
            {"Authorization": f"Bearer {CANARY}", "Content-Type": "application/x-nothing"},
            {"Expect": "200-maybe"},
            {"Connection": "Upgrade", "Upgrade": "websocket"},
            {"Accept-Encoding": "gzip;q=x, *;q=9"},
        )
    )
    return await _post(target, _INFER, _json(_infer()), headers)


def http_attacks() -> list[Attack]:
    unwanted = NAMED_WRONG | {"403", "415"}
    return [
        Attack("HTTP: classification of an output", classification, REFUSED),
        Attack("HTTP: wrong JSON", wrong_json, REFUSED | ANSWERED | {"404"}, 2.0),
        Attack("HTTP: wrong inputs", wrong_inputs, NAMED_WRONG, 2.0),
        Attack("HTTP: binary frames", binary_frames, REFUSED, 2.0),
        Attack("HTTP: OpenAI's fields", openai, REFUSED | ANSWERED | {"404", "413"}, 2.0),
        Attack("HTTP: large JSON", large_json, REFUSED | TOO_MUCH | {"404"}, 0.2),
        Attack("HTTP: encodings", encodings, REFUSED | TOO_MUCH | {"415"}, 0.5),
        Attack("HTTP: paths", paths, NAMED_WRONG | {"414", "closed"}, 2.0),
        Attack("HTTP: administration", administration, unwanted),
        Attack("HTTP: methods", methods, NAMED_WRONG),
        Attack("HTTP: headers", headers_, ANYTHING_BUT_A_FAULT | {"415", "417", "431"}),
    ]
