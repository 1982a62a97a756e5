"""Other projects' clients, unchanged or with the one setting that the documentation names, get the right vectors."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.clients.conftest import HERE, TEXTS
from tests.clients.environments import NODE, PYTHON, RERANKERS
from tests.integration.serve import Serve

PROGRAMS = [(name, program) for name, environment in PYTHON.items() for program in environment.programs]
PAGE = HERE.parents[1] / "docs" / "guides" / "other-clients.md"
_RUN_S = 180


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("environment", "program"), PROGRAMS)
def test_a_python_client_gets_the_right_answers(
    manager: Serve,
    expected: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    python_of: Callable[[str], Path],
    environment: str,
    program: str,
) -> None:
    wanted = scores if program in RERANKERS else expected
    _check([str(python_of(environment)), str(HERE / "programs" / f"{program}.py")], manager, wanted)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("program", NODE)
def test_a_node_client_gets_the_right_vectors(
    manager: Serve, expected: npt.NDArray[np.float32], node_programs: Path, program: str
) -> None:
    _check(["node", str(node_programs / f"{program}.mjs")], manager, expected)


def test_the_page_names_every_version() -> None:
    page = PAGE.read_text(encoding="utf-8")
    pins = [pin for environment in PYTHON.values() for pin in environment.packages]
    node = json.loads((HERE / "package.json").read_text())["dependencies"].items()
    for name, version in [*(re.split(r"(?:\[\w+\])?==", pin) for pin in pins), *node]:
        if name not in ("numpy", "grpc-js-reflection-client", "google-protobuf"):
            assert re.search(rf"{re.escape(name)}\b.*\b{re.escape(version)}\b", page), name


def _check(command: Sequence[str], manager: Serve, expected: npt.NDArray[np.float32]) -> None:
    addresses = {"CLIENT_URL": f"http://127.0.0.1:{manager.http_port}", "CLIENT_GRPC": manager.target}
    # Nothing is downloaded and nothing is reported to its makers; the address here is no hub's.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment = kept | addresses | quiet | {"CLIENT_TEXTS": json.dumps(TEXTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_RUN_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found
    for name, vectors in found.items():
        assert np.abs(np.array(vectors, "<f4") - expected).max() < 1e-6, name
