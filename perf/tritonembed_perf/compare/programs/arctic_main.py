"""Runs Arctic Inference's embedding server on a vLLM that is newer than the one it was written for.

    python arctic_main.py SOURCE_FOLDER replica_manager|replica ARGUMENTS…

Its code is run as it is. What is lent: names that vLLM has moved, and the coroutines that its engine had before 0.10.
"""

import logging
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

PACKAGE = "arctic_inference.embedding"


def main() -> None:
    """Lend what is missing and run the module named on the command line."""
    source, module = sys.argv[1:3]
    sys.path.insert(0, source)
    start_replicas_through_this(source)
    lend_vllm()
    # A line of log for each request, as its code has it, would be measured, too.
    logging.disable(logging.INFO)
    sys.argv = [module, *sys.argv[3:]]
    # The main module stays this one: vLLM's engine processes import it again, and must not start another server.
    runpy.run_module(f"{PACKAGE}.{module}", run_name="__main__")


def start_replicas_through_this(source: str) -> None:
    """The manager starts `python -m arctic_inference.embedding.replica`: let that be this program instead."""
    popen: Callable[..., Any] = subprocess.Popen
    replica = ["-m", f"{PACKAGE}.replica"]

    def start(command: Any, *arguments: Any, **more: Any) -> Any:
        if isinstance(command, list) and command[1:3] == replica:
            command = [command[0], __file__, source, "replica", *command[3:]]
        return popen(command, *arguments, **more)

    subprocess.Popen = start  # type: ignore[misc, assignment]


def lend_vllm() -> None:
    """Give vLLM the names, the request's parameters and the engine that it had before."""
    import vllm.engine.async_llm_engine as engines
    import vllm.logger as logger
    import vllm.pooling_params as parameters
    import vllm.utils as utils

    if not hasattr(utils, "FlexibleArgumentParser"):
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        utils.FlexibleArgumentParser = FlexibleArgumentParser
    # Its own has a field that only vLLM's loggers fill.
    logger._FORMAT = "%(levelname)s %(message)s"
    parameters.PoolingParams = params_class(parameters.PoolingParams)
    engines.AsyncLLMEngine = engine_class(engines.AsyncLLMEngine)


def params_class(current: Any) -> Any:
    """vLLM's parameters for its task, which had to be named later; as a type, because vLLM sees it, too."""

    class Embedding(type):
        def __call__(cls, *arguments: Any, **more: Any) -> Any:
            return current(*arguments, **{"task": "embed", **more})

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, current)

    return Embedding("PoolingParams", (), {})


def engine_class(current: Any) -> Any:
    """vLLM's engine with the coroutines that it had before version 0.10."""

    class Engine(current):  # type: ignore[misc]
        def start_background_loop(self) -> None:
            """Nothing to start: the engine runs already."""

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


if __name__ == "__main__":
    main()
