"""The manager that all clients call, and what they must get from it."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from demo.model import find_model
from tests.clients.environments import LOAD_GENERATORS, PYTHON
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient
from tritonembed_perf.families import rerankers

HERE = Path(__file__).parent
WORK = HERE.parents[1] / ".work" / "clients"
QUERY = "which of them is short?"
TEXTS = ["a sentence", "zwei Wörter", "three of them"]
_INSTALL_S = 900


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A manager of a server with the genuine all-MiniLM-L6-v2, and of one with a reranker of random weights."""
    ranker = tmp_path_factory.mktemp("ranker")
    rerankers.ce_bert(ranker)
    options = ["--device=cpu", "--num-replicas=1", "--tokenizer-instances=1", "--no-reference"]
    with serving("--model", find_model().name, f"--model=ranker={ranker}", *options) as started:
        yield started


@pytest.fixture(scope="session")
def scores(manager: Serve) -> npt.NDArray[np.float32]:
    """The scores of TEXTS for QUERY: float32 [texts, 1]."""
    with EmbeddingClient(manager.target, score_model="ranker") as client:
        return client.score(QUERY, TEXTS).scores


@pytest.fixture(scope="session")
def expected(manager: Serve) -> npt.NDArray[np.float32]:
    """The vectors of TEXTS."""
    with EmbeddingClient(manager.target) as client:
        return client.embed(TEXTS).embeddings


@pytest.fixture(scope="session")
def python_of() -> Callable[[str], Path]:
    """Returns the Python of an environment, which is made if it does not exist with these versions."""

    def find(name: str) -> Path:
        folder, packages = WORK / name, {**PYTHON, **LOAD_GENERATORS}[name].packages
        mark, python = folder / "installed", folder / "bin" / "python"
        if not mark.exists() or mark.read_text() != "\n".join(packages):
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
            mark.write_text("\n".join(packages))
        return python

    return find


@pytest.fixture(scope="session")
def node_programs() -> Path:
    """The folder of the Node programs, with their packages beside it."""
    if shutil.which("npm") is None:
        pytest.fail("npm is needed (apt-get install nodejs npm)")
    folder = WORK / "node"
    shutil.copytree(HERE / "programs", folder / "programs", dirs_exist_ok=True)
    shutil.copy(HERE / "package.json", folder)
    _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)])
    return folder / "programs"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
