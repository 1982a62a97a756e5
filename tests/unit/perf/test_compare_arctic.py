"""Arctic Inference's server: what the shim adds to it, and its protocol."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as messages
from tritonembed_perf.compare.programs import arctic_main
from tritonembed_perf.loadgen.protocols import Arctic


def test_replicas_are_started_through_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: started.append((command, more)))
    arctic_main.start_replicas_through_this("source")
    subprocess.Popen([sys.executable, "-m", f"{arctic_main.PACKAGE}.replica", "--port", "1"], text=True)
    subprocess.Popen(["something", "else"])
    command, more = started[0]
    assert command == [sys.executable, arctic_main.__file__, "source", "replica", "--port", "1"]
    assert more == {"text": True}
    assert started[1][0] == ["something", "else"]


def test_an_engine_has_an_older_engines_methods() -> None:
    class Current:
        tokenizer = SimpleNamespace(tokenizer="the tokenizer itself")
        model_config = SimpleNamespace(model="m", dtype="float32", max_model_len=512)
        vllm_config = SimpleNamespace(parallel_config="p", scheduler_config="s", lora_config=None)

    async def ask() -> list[Any]:
        engine = arctic_main.engine_class(Current)()
        engine.start_background_loop()
        config = await engine.get_model_config()
        return [config.model, config.max_model_len, config.task, await engine.get_tokenizer()]

    assert asyncio.run(ask()) == ["m", 512, "embed", "the tokenizer itself"]


async def test_its_protocol_is_spoken() -> None:
    async def answer(request: Any, context: Any) -> Any:
        rows = [np.full(3, len(text), "<f4").tobytes() for text in request.prompts]
        return messages.EncodeResponse(n_prompts=len(rows), embedding_bytes_fp32=rows)

    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handler = grpc.unary_unary_rpc_method_handler(
        answer, messages.EncodeRequest.FromString, messages.EncodeResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("arctic_inference.InferenceService", {"Encode": handler})
    server.add_generic_rpc_handlers((service,))
    await server.start()
    protocol = Arctic(f"127.0.0.1:{port}", "model")
    transport = protocol.sender().open(1, 5.0)
    try:
        found = protocol.decode(await transport.send(protocol.encode(["a", "bcd"]), 0), 2)
    finally:
        await transport.close()
        await server.stop(None)
    assert found.vectors.tolist() == [[1.0] * 3, [3.0] * 3]
