"""Good callers: they send 1, 16 or 64 sentences over each API and compare every vector with the known one.

The known vectors are those that the service gave before it was attacked or harmed.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import aiohttp
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from tritonembed_perf.chaos.ledger import (
    CONNECTION_LOST,
    HANG,
    CampaignLedger,
    Harms,
    LostRequest,
    documented_limit,
    grpc_outcome,
)

Vectors = NDArray[np.float32]
"""[sentence, dimension]"""

SAME = 0.9999
"""Least cosine of a vector to the known vector. Batches of other sizes round differently, in the sixth digit."""
APART = 0.999
"""Cosines between sentences of the pool are below this, so that a vector in another's place is found."""

_LIST = (
    "river stone winter lamp copper garden letter mountain bridge silver engine harbor violin morning castle orange "
    "planet window forest market doctor thunder paper kitchen ocean ladder horse village candle mirror train desert "
    "pencil island summer cotton dragon whistle carpet ticket tunnel farmer butter magnet rocket spider velvet wagon"
)
_WORDS = _LIST.split()


def make_sentences(count: int, rng: random.Random) -> list[str]:
    """Different sentences of 3 to 14 words."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join(rng.sample(_WORDS, rng.randint(3, 14)))] = None
    return list(made)


class KnownVectors:
    """sentences: the pool. vectors: one per sentence, in the same order. Raises ValueError if two are too alike."""

    def __init__(self, sentences: Sequence[str], vectors: Vectors) -> None:
        self.sentences = list(sentences)
        self._unit = _unit(vectors)
        self._norms = np.linalg.norm(vectors, axis=1)
        alike = self._unit @ self._unit.T
        np.fill_diagonal(alike, -1.0)
        if not float(alike.max()) < APART:
            raise ValueError(f"two sentences have vectors with a cosine of {alike.max():.5f}: no check would be one")

    def pick(self, count: int, rng: random.Random) -> list[int]:
        """Indices of `count` different sentences."""
        return rng.sample(range(len(self.sentences)), count)

    def fault(self, picked: Sequence[int], vectors: Vectors) -> str | None:
        """What is wrong with the vectors of the picked sentences, in a few words; None if they are right."""
        expected = self._unit[list(picked)]
        if vectors.shape != expected.shape:
            return f"shape {list(vectors.shape)} instead of {list(expected.shape)}"
        if not np.isfinite(vectors).all():
            return "a value that is not finite"
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, self._norms[list(picked)], rtol=1e-3):
            return "a vector of another length"
        cosines = np.einsum("ij,ij->i", _unit(vectors), expected)
        worst = int(np.argmin(cosines))
        if cosines[worst] >= SAME:
            return None
        # A high cosine to another sentence shows that answers were mixed up.
        nearest = float((self._unit @ _unit(vectors)[worst]).max())
        return f"cosine {cosines[worst]:.5f} in place {worst} (the nearest sentence of the pool: {nearest:.5f})"


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


SIZES = (1, 1, 16, 64)
"""Sentences of a request: one of these at random."""
DEADLINE_S = 30.0
REST_S = (0.02, 0.25)
"""Range of the seconds between two requests of a caller."""
AGAIN_S = 0.5
"""Seconds before a lost request is sent again, if a harm explains the loss."""
_PER_STREAM_REQUEST = 16
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Way(Protocol):
    """A client of one of the service's APIs."""

    async def embed(self, texts: list[str]) -> Vectors:
        """Vectors of the texts. Raises Lost if there is no answer."""

    async def close(self) -> None:
        """Close the connections."""


class GrpcUnary:
    """ModelInfer with tritonclient."""

    def __init__(self, target: str) -> None:
        self._client = triton_aio.InferenceServerClient(target, channel_args=_OPTIONS)

    async def embed(self, texts: list[str]) -> Vectors:
        """Send the texts as one request."""
        try:
            result = await self._client.infer("embedding", [_grpc_input(texts)], client_timeout=DEADLINE_S)
        except InferenceServerException as error:
            raise _grpc_lost(error) from None
        return _vectors(result.as_numpy("embedding"))

    async def close(self) -> None:
        await self._client.close()


class GrpcStream:
    """ModelStreamInfer with tritonclient: one stream for all requests, of which 64 sentences make several at a time."""

    def __init__(self, target: str) -> None:
        self._client = triton_aio.InferenceServerClient(target, channel_args=_OPTIONS)
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        """None ends the stream."""
        self._answers: Any = None
        self._number = 0

    async def embed(self, texts: list[str]) -> Vectors:
        """Send the texts as requests of 16 sentences."""
        if self._answers is None:
            self._requests = asyncio.Queue()
            self._answers = self._client.stream_infer(_taken(self._requests))
        expected = []
        for start in range(0, len(texts), _PER_STREAM_REQUEST):
            self._number += 1
            expected.append(str(self._number))
            inputs = [_grpc_input(texts[start : start + _PER_STREAM_REQUEST])]
            self._requests.put_nowait({"model_name": "embedding", "inputs": inputs, "request_id": expected[-1]})
        try:
            parts = [await self._read(id) for id in expected]
        except BaseException:
            await self._end()
            raise
        return np.concatenate(parts)

    async def _read(self, id: str) -> Vectors:
        try:
            result, error = await anext(self._answers)
        except InferenceServerException as broken:
            raise _grpc_lost(broken) from None
        except grpc.aio.AioRpcError as broken:
            # Only some of tritonclient's calls wrap this error.
            message = broken.details() or ""
            raise LostRequest(grpc_outcome(broken.code().name, message), message) from None
        except StopAsyncIteration:
            raise LostRequest(CONNECTION_LOST, "the stream ended") from None
        if error is not None:
            raise LostRequest("stream error", str(error))
        if result.get_response().id != id:
            raise LostRequest("order", f"the answer to request {result.get_response().id} in the place of {id}")
        return _vectors(result.as_numpy("embedding"))

    async def _end(self) -> None:
        answers, self._answers = self._answers, None
        if answers is not None:
            self._requests.put_nowait(None)
            answers.cancel()

    async def close(self) -> None:
        await self._end()
        await self._client.close()


class HttpBinary:
    """KServe over HTTP with the binary extension, encoded and decoded by tritonclient."""

    def __init__(self, url: str) -> None:
        self._session = _session()
        self._url = f"{url}/v2/models/embedding/infer"

    async def embed(self, texts: list[str]) -> Vectors:
        """Send the texts as one request."""
        tensor = triton_http.InferInput("text", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(_column(texts), binary_data=True)
        outputs = [triton_http.InferRequestedOutput("embedding", binary_data=True)]
        body, length = triton_http.InferenceServerClient.generate_request_body([tensor], outputs=outputs)
        status, answer, headers = await _post(
            self._session, self._url, body, {"Inference-Header-Content-Length": str(length)}
        )
        if status != 200:
            raise LostRequest(str(status), answer[:300].decode(errors="replace"))
        of_json = int(headers["Inference-Header-Content-Length"])
        result = triton_http.InferenceServerClient.parse_response_body(answer, header_length=of_json)
        return _vectors(result.as_numpy("embedding"))

    async def close(self) -> None:
        await self._session.close()


class OpenAICaller:
    """/v1/embeddings. Requests ask in turn for vectors as numbers and as base64."""

    def __init__(self, url: str, model: str) -> None:
        self._session = _session()
        self._url = f"{url}/v1/embeddings"
        self._model = model
        self._as_numbers = False

    async def embed(self, texts: list[str]) -> Vectors:
        """Send the texts as one request."""
        self._as_numbers = not self._as_numbers
        form = "float" if self._as_numbers else "base64"
        body = aiohttp.JsonPayload({"model": self._model, "input": texts, "encoding_format": form})
        status, answer, _ = await _post(self._session, self._url, body, {})
        if status != 200:
            raise LostRequest(str(status), answer[:300].decode(errors="replace"))
        rows = json.loads(answer)["data"]
        if [row["index"] for row in rows] != list(range(len(texts))):
            raise LostRequest("order", "the indices of the answer")
        if self._as_numbers:
            return np.array([row["embedding"] for row in rows], dtype=np.float32)
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])

    async def close(self) -> None:
        await self._session.close()


class GoodCaller:
    """Sends one request after the other and records what became of each."""

    def __init__(
        self, name: str, way: Way, known: KnownVectors, ledger: CampaignLedger, harms: Harms, seed: int
    ) -> None:
        self._name = name
        self._way = way
        self._known = known
        self._counts = ledger.way(name)
        self._ledger = ledger
        self._harms = harms
        self._rng = random.Random(seed)

    async def run(self, going: Callable[[], bool]) -> None:
        """Send requests until `going` returns false."""
        while going():
            await self._request()
            await asyncio.sleep(self._rng.uniform(*REST_S))

    async def _request(self) -> None:
        picked = self._known.pick(self._rng.choice(SIZES), self._rng)
        texts = [self._known.sentences[index] for index in picked]
        self._counts.sent += 1
        began = time.monotonic()
        try:
            vectors = await self._embed(texts)
        except LostRequest as lost:
            if documented_limit(lost, self._harms, began, time.monotonic()) is None:
                return self._lost(lost, began, len(texts))
            await asyncio.sleep(AGAIN_S)
            began = time.monotonic()
            try:
                vectors = await self._embed(texts)
            except LostRequest as again:
                return self._lost(again, began, len(texts))
            self._counts.retried += 1
        fault = self._known.fault(picked, vectors)
        if fault is not None:
            self._counts.wrong += 1
            self._ledger.finding(f"wrong vectors: {self._name}, {len(texts)} sentences: {fault}")
            return None
        self._counts.answered += 1
        self._counts.sentences += len(texts)
        self._counts.latencies.append(time.monotonic() - began)
        return None

    async def _embed(self, texts: list[str]) -> Vectors:
        try:
            return await asyncio.wait_for(self._way.embed(texts), DEADLINE_S + 2)
        except (asyncio.TimeoutError, TimeoutError):
            raise LostRequest(HANG, f"after {DEADLINE_S + 2:g} s") from None

    def _lost(self, lost: LostRequest, began: float, count: int) -> None:
        now = time.monotonic()
        if lost.code == "order":
            self._counts.wrong += 1
            self._ledger.finding(f"wrong order: {self._name}, {count} sentences: {lost.message}")
            return
        limit = documented_limit(lost, self._harms, began, now)
        if limit is not None:
            self._counts.documented[limit] += 1
            return
        self._counts.lost[lost.code] += 1
        self._ledger.finding(f"lost: {self._name}, {count} sentences, after {now - began:.1f} s: {lost}")


async def _taken(requests: "asyncio.Queue[dict[str, Any] | None]") -> AsyncIterator[dict[str, Any]]:
    while (request := await requests.get()) is not None:
        yield request


def _column(texts: list[str]) -> Any:
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


def _grpc_input(texts: list[str]) -> Any:
    tensor = triton_grpc.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(_column(texts))
    return tensor


def _vectors(answer: Any) -> Vectors:
    if answer is None:
        raise LostRequest("no output", "the answer has no output `embedding`")
    rows = [np.frombuffer(element, "<f4") for element in answer.reshape(-1)]
    if len({len(row) for row in rows}) != 1:
        return np.empty((0, 0), np.float32)
    return np.stack(rows)


def _grpc_lost(error: Any) -> LostRequest:
    message = str(error.message())
    return LostRequest(grpc_outcome(str(error.status()).rpartition(".")[2], message), message[:300])


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    return aiohttp.ClientSession(timeout=timeout, trust_env=False, auto_decompress=False)


async def _post(session: aiohttp.ClientSession, url: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes, Any]:
    try:
        async with session.post(url, data=body, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers
    except (asyncio.TimeoutError, TimeoutError):
        raise LostRequest(HANG) from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise LostRequest(CONNECTION_LOST, type(error).__name__) from None
