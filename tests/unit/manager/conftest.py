"""vLLM's argument parser in the tests' process."""

import json
import subprocess
from collections.abc import Sequence

import pytest

from tritonembed_manager.server import vllm_arguments


@pytest.fixture
def vllm_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs vLLM's parser in this process, which imports it once. tests/integration uses the real process."""

    def run(command: Sequence[str], *, input: str, **_: object) -> "subprocess.CompletedProcess[str]":
        arguments = command[command.index("tritonembed_manager.server.vllm_arguments") + 1 :]
        found = vllm_arguments.answer(arguments, json.loads(input))
        return subprocess.CompletedProcess(list(command), 0, stdout=f"{json.dumps(found)}\n", stderr="")

    # Packages that vLLM imports may start processes too.
    vllm_arguments.answer([])
    monkeypatch.setattr(vllm_arguments.subprocess, "run", run)
