"""The server as a run finds it: is it there, has it the model, what does it answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_perf.failures import UsageError
from tritonembed_perf.run.arctic import Arctic
from tritonembed_perf.run.kserve import ENSEMBLE, KServe
from tritonembed_perf.run.openai import OpenAI
from tritonembed_perf.run.settings import Settings
from tritonembed_perf.run.wire import (
    Answer,
    RequestFailedError,
    Served,
    UnknownModelError,
    UnreachableError,
    WireProtocol,
    WrongAnswerError,
)

QUESTION_TIMEOUT_S = 10.0
AT_ONCE = 16


@dataclass(frozen=True)
class Target:
    """A server that answers. files: of the model whose tokenizer counts."""

    protocol: WireProtocol
    served: Served
    files: ModelFiles
    tokenizer: Tokenizer


def find_target(settings: Settings) -> Target:
    """Ask the server what it has, and read the model's tokenizer. Raises UsageError."""
    protocol: KServe | OpenAI | Arctic = make_protocol(settings)
    served = ask_server(protocol)
    source = settings.tokenizer or (settings.model if protocol.name == "kserve" else served.model)
    if source is None or (source == served.model and not _may_be_files(source)):
        raise UsageError("--tokenizer is missing: the model's folder or its name on the hub, to count tokens with")
    return Target(replace(protocol, model=served.model), served, *read_tokenizer(source))


def ask_server(protocol: KServe | OpenAI | Arctic) -> Served:
    """What the server has. Raises UsageError where it does not answer or has not the model."""
    try:
        return asyncio.run(protocol.ask(QUESTION_TIMEOUT_S))
    except UnreachableError as error:
        reason = f" ({error})" if str(error) else ""
        raise UsageError(f"no server answers at {protocol.server} over {protocol.name}{reason}") from None
    except UnknownModelError as error:
        has = ", ".join(error.models) or "none that takes texts"
        raise UsageError(f"the server has no model {protocol.model!r}; it has: {has}") from None


def refuse_other_dimensions(found: int, files: ModelFiles) -> None:
    """Of a server's vectors: another model's tokenizer would count wrongly. Raises UsageError."""
    if found != files.dimensions:
        raise UsageError(
            f"the server's vectors have {found} dimensions, those of {files.name} {files.dimensions}: "
            "another model's tokenizer would count wrongly"
        )


def make_protocol(settings: Settings) -> KServe | OpenAI | Arctic:
    """As --protocol, --server and --model say."""
    if settings.protocol == "openai":
        return OpenAI(settings.server, settings.model, settings.encoding)
    if settings.protocol == "arctic":
        return Arctic(settings.server, settings.model)
    # A Triton model has no slash in its name, a folder or a model of the hub has: then it says which tokenizer.
    is_model_of_triton = settings.model is not None and not _may_be_files(settings.model)
    return KServe(settings.server, settings.model if is_model_of_triton and settings.model else ENSEMBLE)


def read_tokenizer(source: str) -> tuple[ModelFiles, Tokenizer]:
    """Of a folder or a name on the hub. Raises UsageError."""
    try:
        files = read_model_files(source)
        from tritonembed_engine.tokenizer_loading import load_tokenizer

        return files, load_tokenizer(files)
    except ModelError as error:
        raise UsageError(f"the tokenizer of {source}: {error}") from None


def embed_alone(protocol: WireProtocol, texts: Sequence[str], timeout: float) -> npt.NDArray[np.float32]:
    """Each text in a request of its own. Raises UsageError where the server refuses one, in its words."""
    answers = asyncio.run(ask_all(protocol, [[text] for text in texts], timeout))
    return np.concatenate([answer.vectors for answer in answers])


async def ask_all(protocol: WireProtocol, requests: Sequence[Sequence[str]], timeout: float) -> list[Answer]:
    """The answers to all requests, a few at one time. Raises UsageError."""
    transport = protocol.open(1, timeout)
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, texts: Sequence[str]) -> Answer:
        async with turns:
            return protocol.decode(await transport.send(protocol.encode(texts), number), len(texts))

    try:
        return await asyncio.gather(*(one(number, texts) for number, texts in enumerate(requests)))
    except RequestFailedError as error:
        message = "" if str(error) == error.kind else f": {error}"
        raise UsageError(f"the server refuses a request of the load with {error.kind}{message}") from None
    except WrongAnswerError as error:
        raise UsageError(f"the server's answer to a request of the load: {error}") from None
    finally:
        await transport.close()


def _may_be_files(name: str) -> bool:
    return "/" in name or Path(name).is_dir()
