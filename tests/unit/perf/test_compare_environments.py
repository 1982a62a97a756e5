"""Which Python a peer runs on, and the error if something is missing."""

import sys
from pathlib import Path

import pytest

from tritonembed_perf.compare.environments import (
    Bench,
    CannotRunError,
    Environment,
    find_python,
    virtual_environment,
)


def bench(folder: Path, *, device: str = "cpu", install: bool = True, **pythons: str) -> Bench:
    return Bench(folder, "float32", device, 2, folder, pythons, install)


def test_a_python_that_lacks_a_package_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="no_such_package is not installed"):
        find_python(bench(tmp_path), Environment("vllm-serve", ("json", "no_such_package")))
    needs = Environment("infinity-emb", ("json",), ("infinity-emb==9",))
    given = bench(tmp_path, **{"infinity-emb": sys.executable})
    assert find_python(given, needs)[0] == sys.executable
    assert find_python(bench(tmp_path, install=False), needs)[0] == sys.executable
    with pytest.raises(CannotRunError, match=r"no_such_package is not installed \(the Python of --python\)"):
        find_python(given, Environment("infinity-emb", ("no_such_package",)))
    with pytest.raises(CannotRunError, match="does not run"):
        find_python(bench(tmp_path, **{"vllm-serve": "/bin/false"}), Environment("vllm-serve", ("json",)))


def test_versions_are_those_of_the_peers_python(tmp_path: Path) -> None:
    versions = find_python(bench(tmp_path), Environment("here", ("json", "numpy", "grpc")))[1]
    assert [word.split()[0] for word in versions.split(", ")] == ["numpy", "grpcio"]


def test_an_environment_that_cannot_be_made_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CannotRunError, match=r"it can't be installed: ERROR: .*no-such-peer"):
        virtual_environment(bench(tmp_path, device="cuda"), Environment("peer", (), ("no-such-peer==1",)))
    assert not (tmp_path / "venvs" / "peer" / ".installed").exists()


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "venvs" / "peer"
    folder.mkdir(parents=True)
    (folder / ".installed").write_text("peer==1")
    made = virtual_environment(bench(tmp_path, device="cuda"), Environment("peer", (), ("peer==1",)))
    assert made == folder / "bin" / "python"
