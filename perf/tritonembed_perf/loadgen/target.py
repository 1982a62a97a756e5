"""The server to measure: whether it answers, has the model and accepts the requests."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_manager.tune.loadgen.load import ENSEMBLE, RequestFailedError
from tritonembed_manager.tune.loads import LoadShape, NoTextError, WordTexts
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.protocols import (
    Answer,
    Arctic,
    KServeProtocol,
    OpenAIProtocol,
    Served,
    WireProtocol,
    WrongAnswerError,
)
from tritonembed_perf.loadgen.requests import encoded_requests, parse_loads
from tritonembed_perf.settings import RunSettings
from tritonembed_protocol.limits import MAX_BATCH_SIZE

QUESTION_TIMEOUT_S = 10.0
AT_ONCE = 16


class Shape(Protocol):
    """Tokens of each sentence, sentences of each request. Its text goes into errors."""

    @property
    def tokens(self) -> int: ...

    @property
    def sentences(self) -> int: ...


@dataclass(frozen=True)
class Target:
    """A server that answers. files: of the model whose tokenizer counts."""

    protocol: WireProtocol
    served: Served
    files: ModelFiles
    tokenizer: Tokenizer


def find_target(settings: RunSettings) -> Target:
    """Read the server's description and the model's tokenizer. Raises UsageError."""
    protocol = _protocol(settings)
    served = ask_server(protocol)
    source = settings.tokenizer or (settings.model if protocol.name == "kserve" else served.model)
    if source is None or (source == served.model and not _may_be_files(source)):
        raise UsageError("--tokenizer is missing: the model's folder or its name on the hub, to count tokens with")
    return Target(replace(protocol, model=served.model), served, *read_tokenizer(source))


def ask_server(protocol: WireProtocol) -> Served:
    """What the server has. Raises UsageError if it does not answer or lacks the model."""
    return asyncio.run(protocol.describe(QUESTION_TIMEOUT_S))


def encode_loads(
    model: str, loads: str, server: str | None = None, api_key: str | None = None
) -> dict[LoadShape, list[bytes]]:
    """Encoded requests of each load, such as `50x64@4,50x1@16`. Raises UsageError as `check_loads` does."""
    shapes = parse_loads(loads)
    files, tokenizer = read_tokenizer(model)
    check_loads(shapes, files, tokenizer, server, api_key)
    return {load: encoded_requests(tokenizer, load) for load in shapes}


def check_loads(
    loads: Sequence[Shape],
    files: ModelFiles,
    tokenizer: Tokenizer,
    server: str | None = None,
    api_key: str | None = None,
) -> None:
    """Texts of each load can be made, and the server, if it runs already, serves this model and takes them.

    Raises UsageError.
    """
    words = WordTexts(tokenizer)
    for load in loads:
        check_length(str(load), load.tokens, words, files.max_length)
    limit = server and ask_server(KServeProtocol(server, api_key=api_key)).max_batch_size
    for load in loads:
        if load.sentences > (limit or MAX_BATCH_SIZE):
            raise UsageError(f"{load}: the server takes {limit or MAX_BATCH_SIZE} sentences a request")
    if server:
        texts = words.of_lengths([min(load.tokens for load in loads)], random.Random(0))
        vectors = embed_alone(KServeProtocol(server, api_key=api_key), texts, QUESTION_TIMEOUT_S)
        refuse_other_dimensions(vectors.shape[1], files)


def check_length(name: str, tokens: int, words: WordTexts, longest: int) -> None:
    """Texts of `tokens` tokens can be made and served. Raises UsageError, which begins with `name`."""
    if tokens > longest:
        raise UsageError(f"{name}: the model takes at most {longest} tokens")
    try:
        words.of_lengths([tokens], random.Random(0))
    except NoTextError as error:
        raise UsageError(f"{name}: {error}") from None


def refuse_other_dimensions(found: int, files: ModelFiles) -> None:
    """Check that the server's vectors have the model's dimensions: else its tokenizer would count wrongly.

    Raises UsageError.
    """
    if found != files.dimensions:
        raise UsageError(
            f"the server's vectors have {found} dimensions, those of {files.name} {files.dimensions}: "
            "another model's tokenizer would count wrongly"
        )


def read_tokenizer(source: str) -> tuple[ModelFiles, Tokenizer]:
    """The files and the tokenizer of a folder or of a name on the hub. Raises UsageError."""
    try:
        files = read_model_files(source)
        from tritonembed_engine.tokenizing.loading import load_tokenizer

        return files, load_tokenizer(files)
    except ModelError as error:
        raise UsageError(f"the tokenizer of {source}: {error}") from None


def embed_alone(protocol: WireProtocol, texts: Sequence[str], timeout: float) -> npt.NDArray[np.float32]:
    """Each text in a request of its own. Raises UsageError with the server's message if it refuses one."""
    answers = asyncio.run(_ask_all(protocol, texts, timeout))
    return np.concatenate([answer.vectors for answer in answers])


async def _ask_all(protocol: WireProtocol, texts: Sequence[str], timeout: float) -> list[Answer]:
    transport = protocol.sender().open(1, timeout)
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, text: str) -> Answer:
        async with turns:
            return protocol.decode(await transport.send(protocol.encode([text]), number), 1)

    try:
        return await asyncio.gather(*(one(number, text) for number, text in enumerate(texts)))
    except RequestFailedError as error:
        message = "" if str(error) == error.kind else f": {error}"
        raise UsageError(f"the server refuses a request of the load with {error.kind}{message}") from None
    except WrongAnswerError as error:
        raise UsageError(f"the server's answer to a request of the load: {error}") from None
    finally:
        await transport.close()


def _protocol(settings: RunSettings) -> KServeProtocol | OpenAIProtocol | Arctic:
    server, model, tls, key = settings.address, settings.model, settings.tls, settings.api_key
    if settings.protocol == "openai":
        return OpenAIProtocol(server, model, settings.encoding, tls=tls, api_key=key)
    if settings.protocol == "arctic":
        return Arctic(server, model, tls=tls, api_key=key)
    # A Triton model has no slash in its name; a folder or a model of the hub has, and names the tokenizer.
    return KServeProtocol(server, ENSEMBLE if model is None or _may_be_files(model) else model, tls=tls, api_key=key)


def _may_be_files(name: str) -> bool:
    return "/" in name or Path(name).is_dir()
