"""What the shim adds to Arctic Inference's server: the wire, the command of its replicas, an older engine's methods."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as messages
from tritonembed_perf.compare import arctic_shim
from tritonembed_perf.loadgen.grpc_protocols import Arctic


class Servicer:
    """Like Arctic Inference's servicer: coroutines of a request and a context."""

    async def Encode(self, request: Any, context: Any) -> Any:
        rows = [np.full(3, len(text), "<f4").tobytes() for text in request.prompts]
        return messages.EncodeResponse(n_prompts=len(rows), embedding_bytes_fp32=rows)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return messages.HealthCheckResponse(healthy=True)


async def test_its_server_and_its_replicas_speak_the_arctic_protocol() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    arctic_shim._add_servicer(messages, Servicer(), server)
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        stub: Any = arctic_shim._Stub(messages, channel)
        assert (await stub.HealthCheck(messages.HealthCheckRequest())).healthy
        protocol = Arctic(f"127.0.0.1:{port}", "model")
        transport = protocol.sender().open(1, 5.0)
        try:
            answer = protocol.decode(await transport.send(protocol.encode(["a", "bcd"]), 0), 2)
        finally:
            await transport.close()
        assert answer.vectors.tolist() == [[1.0] * 3, [3.0] * 3]
    finally:
        await channel.close()
        await server.stop(None)


def test_replicas_are_started_through_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: started.append((command, more)))
    arctic_shim._start_replicas_through_shim("source")
    subprocess.Popen([sys.executable, "-m", f"{arctic_shim.PACKAGE}.replica", "--port", "1"], text=True)
    subprocess.Popen(["something", "else"])
    command, more = started[0]
    assert command == [sys.executable, "-m", arctic_shim.NAME, "source", "replica", "--port", "1"]
    assert more == {"text": True}
    assert started[1][0] == ["something", "else"]


def test_an_engine_has_an_older_engines_methods() -> None:
    class Current:
        tokenizer = SimpleNamespace(tokenizer="the tokenizer itself")
        model_config = SimpleNamespace(model="m", dtype="float32", max_model_len=512)
        vllm_config = SimpleNamespace(parallel_config="p", scheduler_config="s", lora_config=None)

    async def ask() -> list[Any]:
        engine = arctic_shim._engine_class(Current)()
        engine.start_background_loop()
        config = await engine.get_model_config()
        return [config.model, config.max_model_len, config.task, await engine.get_tokenizer()]

    assert asyncio.run(ask()) == ["m", 512, "embed", "the tokenizer itself"]
