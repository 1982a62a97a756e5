"""Runs Arctic Inference's embedding server on a vLLM that is newer than the one it was written for.

    python -m tritonembed_perf.compare.arctic_shim SOURCE_FOLDER replica_manager|replica ARGUMENTS…

Its code is run as it is. What is lent: the generated protobuf modules, which its package makes when it is built; the
names that vLLM has moved; and the coroutines that vLLM's engine had before version 0.10.
"""

import logging
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

NAME = "tritonembed_perf.compare.arctic_shim"
PACKAGE = "arctic_inference.embedding"
GENERATED = f"{PACKAGE}.proto.python"
SERVICE = "arctic_inference.InferenceService"
METHODS = {
    "Encode": ("EncodeRequest", "EncodeResponse"),
    "Abort": ("AbortRequest", "AbortResponse"),
    "GetReplicaInfo": ("ReplicaInfoRequest", "ReplicaInfoResponse"),
    "HealthCheck": ("HealthCheckRequest", "HealthCheckResponse"),
}


def main() -> None:
    """Lend what is missing and run the module named on the command line."""
    source, module = sys.argv[1:3]
    sys.path.insert(0, source)
    _lend_protobuf()
    if module == "replica_manager":
        _start_replicas_through_shim(source)
    _lend_vllm()
    # A line of log for each request, as its code has it, would be measured too.
    logging.disable(logging.INFO)
    sys.argv = [module, *sys.argv[3:]]
    # The main module stays this one: vLLM's engine processes import it again, and must not start another server.
    runpy.run_module(f"{PACKAGE}.{module}", run_name="__main__")


def _lend_protobuf() -> None:
    """The messages are the same as those of the manager's Arctic API, names and numbers alike."""
    import arctic_inference.embedding.proto as parent  # type: ignore[import-not-found]

    from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as messages

    package = types.ModuleType(GENERATED)
    services: Any = types.ModuleType(f"{GENERATED}.inference_pb2_grpc")
    services.InferenceServiceServicer = object
    services.InferenceServiceStub = partial(_Stub, messages)
    services.add_InferenceServiceServicer_to_server = partial(_add_servicer, messages)
    parent.python = package
    package.inference_pb2 = messages  # type: ignore[attr-defined]
    package.inference_pb2_grpc = services  # type: ignore[attr-defined]
    sys.modules |= {
        GENERATED: package,
        f"{GENERATED}.inference_pb2": messages,
        f"{GENERATED}.inference_pb2_grpc": services,
    }


class _Stub:
    def __init__(self, messages: Any, channel: grpc.aio.Channel) -> None:
        for method, (request, response) in METHODS.items():
            call = channel.unary_unary(
                f"/{SERVICE}/{method}",
                getattr(messages, request).SerializeToString,
                getattr(messages, response).FromString,
            )
            setattr(self, method, call)


def _add_servicer(messages: Any, servicer: Any, server: grpc.aio.Server) -> None:
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method),
            request_deserializer=getattr(messages, request).FromString,
            response_serializer=getattr(messages, response).SerializeToString,
        )
        for method, (request, response) in METHODS.items()
        if hasattr(servicer, method)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _lend_vllm() -> None:
    import vllm.engine.async_llm_engine as engines
    import vllm.logger as logger
    import vllm.pooling_params as parameters
    import vllm.utils as utils

    if not hasattr(utils, "FlexibleArgumentParser"):
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        utils.FlexibleArgumentParser = FlexibleArgumentParser
    # Its own has a field that only vLLM's loggers fill.
    logger._FORMAT = "%(levelname)s %(message)s"
    parameters.PoolingParams = _params_class(parameters.PoolingParams)
    engines.AsyncLLMEngine = _engine_class(engines.AsyncLLMEngine)


def _params_class(current: Any) -> Any:
    """vLLM's parameters for its task, which had to be named later; as a type, because vLLM too sees it from now on."""

    class Embedding(type):
        def __call__(cls, *arguments: Any, **more: Any) -> Any:
            return current(*arguments, **{"task": "embed", **more})

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, current)

    return Embedding("PoolingParams", (), {})


def _engine_class(current: Any) -> Any:
    """vLLM's engine with the coroutines that it had before version 0.10."""

    class Engine(current):  # type: ignore[misc]
        def start_background_loop(self) -> None:
            """It runs already."""

        async def get_tokenizer(self) -> Any:
            found = self.tokenizer
            return getattr(found, "tokenizer", found) if not callable(found) else found

        async def get_model_config(self) -> Any:
            config = self.model_config
            return types.SimpleNamespace(
                model=config.model, task="embed", dtype=config.dtype, max_model_len=config.max_model_len
            )

        async def get_parallel_config(self) -> Any:
            return self.vllm_config.parallel_config

        async def get_decoding_config(self) -> Any:
            return ""

        async def get_scheduler_config(self) -> Any:
            return self.vllm_config.scheduler_config

        async def get_lora_config(self) -> Any:
            return self.vllm_config.lora_config

    return Engine


def _start_replicas_through_shim(source: str) -> None:
    """The manager starts `python -m arctic_inference.embedding.replica`: let that be this module instead."""
    popen: Callable[..., Any] = subprocess.Popen

    def start(command: Any, *arguments: Any, **more: Any) -> Any:
        module = f"{PACKAGE}.replica"
        if isinstance(command, list) and module in command:
            place = command.index(module)
            command = [*command[:place], NAME, source, "replica", *command[place + 1 :]]
        return popen(command, *arguments, **more)

    subprocess.Popen = start  # type: ignore[misc, assignment]


if __name__ == "__main__":
    main()
