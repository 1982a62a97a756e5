"""Other projects' clients, unchanged or with the one setting that the documentation names, get the right vectors."""

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pytest
from demo.model import find_model
from tests.clients.conftest import HERE, TEXTS
from tests.clients.environments import LOAD_GENERATORS, NODE, PYTHON, RERANKERS
from tests.integration.serve import Serve

from tritonembed_perf.perf_analyzer import find_program

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


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("environment", LOAD_GENERATORS)
def test_a_load_generator_counts_all_requests_as_answered(
    manager: Serve, python_of: Callable[[str], Path], environment: str
) -> None:
    """Both want a tokenizer's folder; genai-perf runs perf_analyzer."""
    [program] = LOAD_GENERATORS[environment].programs
    analyzer = find_program(None)
    paths = {"PATH": f"{analyzer.path.parent}:{os.environ['PATH']}", "CLIENT_TOKENIZER": find_model().name}
    command = [str(python_of(environment)), str(HERE / "programs" / "load_generators.py"), program]
    _check(command, manager, np.array([[6]], np.float32), {**analyzer.environment, **paths})


@pytest.mark.timeout(300)
def test_perf_analyzer_measures_over_grpc(manager: Serve, tmp_path: Path) -> None:
    program, texts, export = find_program(None), tmp_path / "texts.json", tmp_path / "export.csv"
    texts.write_text(json.dumps({"data": [{"text": [text]} for text in TEXTS]}))
    command = [str(program.path), "-m", "embedding", "-i", "grpc", "-u", manager.target, "-b", "2"]
    command += ["--input-data", str(texts), "--measurement-mode", "count_windows", "-r", "3", "-s", "999"]
    command += ["--measurement-request-count", "5", "-f", str(export)]
    done = subprocess.run(
        command, env=os.environ | program.environment, capture_output=True, text=True, timeout=_RUN_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(next(csv.DictReader(export.read_text().splitlines()))["Inferences/Second"]) > 0


def test_the_page_names_every_version() -> None:
    page = PAGE.read_text(encoding="utf-8")
    pins = [pin for environment in (*PYTHON.values(), *LOAD_GENERATORS.values()) for pin in environment.packages]
    node = json.loads((HERE / "package.json").read_text())["dependencies"].items()
    for name, version in [*(re.split(r"(?:\[\w+\])?==", pin) for pin in pins), *node]:
        if name not in ("numpy", "torch", "tiktoken", "grpc-js-reflection-client", "google-protobuf"):
            assert re.search(rf"{re.escape(name)}\b.*\b{re.escape(version)}\b", page), name


def _check(
    command: Sequence[str],
    manager: Serve,
    expected: npt.NDArray[np.float32],
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """more: further variables of the program."""
    addresses = {"CLIENT_URL": f"http://127.0.0.1:{manager.http_port}", "CLIENT_GRPC": manager.target}
    # Nothing is downloaded and nothing is reported to its makers; the address here is no hub's.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment = kept | addresses | quiet | {"CLIENT_TEXTS": json.dumps(TEXTS)} | dict(more)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_RUN_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found
    for name, vectors in found.items():
        assert np.abs(np.array(vectors, "<f4") - expected).max() < 1e-6, name
