"""Attacks with gRPC's own client: hostile messages, alone and on streams, other methods, and cancelled calls."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from tritonembed_perf.chaos.attack import ANYTHING_BUT_A_FAULT, LATE, NAMED_WRONG, Attack, AttackTarget, Send
from tritonembed_perf.chaos.ledger import grpc_outcome
from tritonembed_perf.chaos.messages import MESSAGES, Make, good_message

_SERVICE = "/inference.GRPCInferenceService"
_CALL_S = 15.0
NOT_ANSWERED = "the good request behind it was not answered"


def _outcome(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    message = error.details() or ""
    return grpc_outcome(error.code().name, message), message


async def _call(
    target: AttackTarget, method: str, message: bytes, timeout: float = _CALL_S, **more: Any
) -> tuple[str, str]:
    try:
        await target.channel.unary_unary(f"{_SERVICE}/{method}", None, None)(message, timeout=timeout, **more)
    except grpc.aio.AioRpcError as error:
        return _outcome(error)
    return "OK", ""


def unary(make: Make) -> Send:
    """Send the message as one ModelInfer."""

    async def send(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
        return await _call(target, "ModelInfer", make(rng))

    return send


def streamed(make: Make) -> Send:
    """Send the message on a stream, then a good message, which has to be answered."""

    async def send(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
        after = good_message()
        after.id = "after"

        async def both() -> AsyncIterator[bytes]:
            yield make(rng)
            yield after.SerializeToString()

        call = target.channel.stream_stream(f"{_SERVICE}/ModelStreamInfer", None, None)(both(), timeout=_CALL_S)
        try:
            answers = [service_pb2.ModelStreamInferResponse.FromString(answer) async for answer in call]
        except grpc.aio.AioRpcError as error:
            return _outcome(error)
        if len(answers) != 2 or answers[1].error_message or answers[1].infer_response.id != "after":
            return NOT_ANSWERED, answers[-1].error_message if answers else ""
        return ("stream error" if answers[0].error_message else "OK"), answers[0].error_message

    return send


async def admin(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Methods that change servers."""
    log = service_pb2.LogSettingsRequest()
    log.settings["log_info"].bool_param = False
    trace = service_pb2.TraceSettingRequest()
    trace.settings["trace_level"].value.append("TIMESTAMPS")
    method, message = rng.choice(
        (
            ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="embedding")),
            ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="embedding")),
            ("LogSettings", log),
            ("TraceSetting", trace),
        )
    )
    return await _call(target, method, message.SerializeToString())


async def no_such_method(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Methods that do not exist, and those of shared memory."""
    method = rng.choice(("", "ModelInfer2", "SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "x" * 5000))
    return await _call(target, method, rng.randbytes(50))


async def asked_about(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Requests for the metadata of models that do not exist, and noise instead of such a request."""
    method = rng.choice(("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady", "RepositoryIndex"))
    name = rng.choice(("nothing", "embedding\0x", "x" * 100_000, "embedding/1", "\x1b[31m"))
    message = service_pb2.ModelMetadataRequest(name=name).SerializeToString()
    return await _call(target, method, rng.choice((message, rng.randbytes(30))))


async def hardly_any_time(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Deadlines that can't be kept."""
    timeout = rng.choice((0.0, 1e-6, 0.0005, 0.002))
    return await _call(target, "ModelInfer", good_message((b"a text",) * 64).SerializeToString(), timeout)


async def cancelled(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Many calls that their caller cancels."""
    infer = target.channel.unary_unary(f"{_SERVICE}/ModelInfer", None, None)
    message = good_message((b"a text",) * 16).SerializeToString()
    calls = [infer(message, timeout=_CALL_S) for _ in range(rng.choice((5, 30)))]
    await asyncio.sleep(rng.uniform(0, 0.02))
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    return "closed", ""


async def broken_stream(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """A stream that its caller cancels in the middle."""
    message = good_message((b"a text",) * 4).SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield message

    call = target.channel.stream_stream(f"{_SERVICE}/ModelStreamInfer", None, None)(requests(), timeout=_CALL_S)
    try:
        for _ in range(rng.choice((0, 1, 5))):
            await call.read()
    except grpc.aio.AioRpcError as error:
        return _outcome(error)
    call.cancel()
    return "closed", ""


async def large_metadata(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Metadata with many or large entries."""
    metadata = [(f"x-{number}", "v" * rng.choice((1, 100))) for number in range(rng.choice((1, 20, 500)))]
    return await _call(target, "ModelInfer", good_message().SerializeToString(), metadata=metadata)


def grpc_attacks() -> list[Attack]:
    attacks = []
    for name, (make, allowed, often) in MESSAGES.items():
        attacks.append(Attack(f"gRPC: {name}", unary(make), allowed, often))
        attacks.append(Attack(f"stream: {name}", streamed(make), allowed, often / 2))
    not_allowed = NAMED_WRONG | {"PERMISSION_DENIED"}
    return [
        *attacks,
        Attack("gRPC: administration", admin, not_allowed),
        Attack("gRPC: no such method", no_such_method, frozenset({"UNIMPLEMENTED"})),
        Attack("gRPC: questions", asked_about, NAMED_WRONG | {"OK"}),
        Attack("gRPC: hardly any time", hardly_any_time, LATE | {"OK"}),
        Attack("gRPC: cancelled calls", cancelled, frozenset({"closed"})),
        Attack("gRPC: a stream that is left", broken_stream, frozenset({"closed"})),
        Attack("gRPC: large metadata", large_metadata, ANYTHING_BUT_A_FAULT),
    ]
