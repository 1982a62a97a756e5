"""Which Python a peer runs on, and the error if something is missing."""

import sys
from pathlib import Path

import pytest

from tritonembed_perf.compare.environments import own_python, this_python, versions, virtual_environment
from tritonembed_perf.compare.peer import Bench, CannotRunError


def bench(folder: Path, *, device: str = "cpu", install: bool = True, **pythons: str) -> Bench:
    return Bench(folder, "float32", device, 2, 0, folder, pythons, install)


def test_a_python_that_lacks_a_package_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="no_such_package is not installed in this Python"):
        this_python(bench(tmp_path), "vllm-serve", ("json", "no_such_package"))
    given = bench(tmp_path, **{"infinity-emb": sys.executable})
    with pytest.raises(CannotRunError, match="no_such_package and others are not installed in the Python of --python"):
        own_python(given, "infinity-emb", (), ("no_such_package", "nor_this"))
    assert own_python(given, "infinity-emb", (), ("json",)) == sys.executable
    assert own_python(bench(tmp_path, install=False), "infinity-emb", (), ("json",)) == sys.executable
    with pytest.raises(CannotRunError, match="does not run"):
        this_python(bench(tmp_path, **{"vllm-serve": "/bin/false"}), "vllm-serve", ("json",))


def test_versions_are_those_of_the_peers_python() -> None:
    assert versions(sys.executable, ["no-such-package", "numpy"]).startswith("numpy ")


def test_an_environment_that_cannot_be_made_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CannotRunError, match=r"it can't be installed: ERROR: .*no-such-peer"):
        virtual_environment(bench(tmp_path, device="cuda"), "peer", ["no-such-peer==1"])
    assert not (tmp_path / "venvs" / "peer" / ".installed").exists()


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "venvs" / "peer"
    folder.mkdir(parents=True)
    (folder / ".installed").write_text("peer==1")
    assert virtual_environment(bench(tmp_path, device="cuda"), "peer", ["peer==1"]) == folder / "bin" / "python"
