"""OpenAI's /v1/embeddings over HTTP: the manager, vLLM, Infinity, Text Embeddings Inference and many more."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from tritonembed_manager.tune.loadgen.load import RequestFailedError
from tritonembed_perf.loadgen.answers import Answer
from tritonembed_perf.loadgen.protocol import Served, WrongAnswerError, choose_model, unreachable

HTTP_OK = 200
HTTP_NOT_FOUND = 404
MESSAGE_LENGTH = 200
MOST_CONNECTIONS = 512


@dataclass(frozen=True)
class OpenAI:
    """A WireProtocol. server: http://host:port, perhaps with a path other than /v1.

    encoding: `base64` and `float` are OpenAI's; `bytes` is vLLM's `bytes_only`: little-endian float32 and nothing else.
    """

    server: str
    model: str | None = None
    encoding: str = "base64"
    name: str = "openai"

    def encode(self, texts: Sequence[str]) -> bytes:
        body = {"input": list(texts), "encoding_format": "bytes_only" if self.encoding == "bytes" else self.encoding}
        if self.model:
            body["model"] = self.model
        return json.dumps(body).encode()

    def decode(self, answer: bytes, sentences: int) -> Answer:
        try:
            if self.encoding == "bytes":
                return Answer(np.frombuffer(answer, "<f4").reshape(sentences, -1))
            items = json.loads(answer)["data"]
            if [item["index"] for item in items] != list(range(sentences)):
                raise WrongAnswerError(f"{len(items)} vectors for {sentences} sentences, or out of order")
            rows = [item["embedding"] for item in items]
            if self.encoding == "base64":
                joined = b"".join(map(b64decode, rows))
                return Answer(np.frombuffer(joined, "<f4").reshape(sentences, -1))
            return Answer(np.array(rows, np.float32))
        except (ValueError, KeyError, TypeError, IndexError):
            raise WrongAnswerError(f"the answer can't be read as {sentences} vectors in {self.encoding}") from None

    def sender(self) -> "HttpSender":
        return HttpSender(base_url(self.server) + "/embeddings")

    async def describe(self, timeout: float) -> Served:
        """A server that does not list its models is taken to have the model that was named."""
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(base_url(self.server) + "/models") as answer,
            ):
                body = await answer.read()
                status, software = answer.status, answer.headers.get("Server", "HTTP")
            if status == HTTP_NOT_FOUND and self.model:
                return Served(self.model, software)
            models = [str(item["id"]) for item in json.loads(body)["data"]]
        except aiohttp.ClientResponseError:
            raise unreachable(self, "it does not speak HTTP") from None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise unreachable(self, str(error) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError):
            raise unreachable(self, "it does not answer as an OpenAI server: no list of models") from None
        return Served(choose_model(self, models), software)


@dataclass(frozen=True)
class HttpSender:
    """A Sender: POSTs payloads to the URL."""

    url: str

    def connections(self, concurrency: int | None) -> int:
        return min(concurrency or MOST_CONNECTIONS, MOST_CONNECTIONS)

    def open(self, connections: int, timeout: float) -> "HttpTransport":
        return HttpTransport(self.url, connections, timeout)


class HttpTransport:
    """Keep-alive connections, as many as there are requests at one time and at most `connections`."""

    def __init__(self, url: str, connections: int, timeout: float) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout),
            headers={"Content-Type": "application/json"},
        )

    async def send(self, payload: bytes, number: int) -> bytes:  # noqa: ARG002 - the pool spreads requests by itself
        try:
            async with self._session.post(self._url, data=payload) as answer:
                body = await answer.read()
        except asyncio.TimeoutError:
            raise RequestFailedError("timeout") from None
        except aiohttp.ClientError as error:
            raise RequestFailedError(type(error).__name__, str(error)) from None
        if answer.status != HTTP_OK:
            raise RequestFailedError(f"HTTP {answer.status}", body[:MESSAGE_LENGTH].decode(errors="replace"))
        return body

    async def close(self) -> None:
        await self._session.close()


def base_url(server: str) -> str:
    """`host:port`, `http://host:port` and `http://host:port/v1` are the same; another path is kept."""
    url = server if "://" in server else f"http://{server}"
    path = urlsplit(url).path.rstrip("/")
    return url.rstrip("/") if path else url.rstrip("/") + "/v1"
