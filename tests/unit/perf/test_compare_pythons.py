"""Which Python a peer runs on, and the error if something is missing."""

import sys
from pathlib import Path

import pytest

from tritonembed_perf.compare.launching import CannotRunError
from tritonembed_perf.compare.peer import Bench, Environment, find_python


def bench(folder: Path, **pythons: str) -> Bench:
    return Bench(folder, "float32", "cpu", 2, folder, pythons)


def test_a_python_that_lacks_a_package_is_refused_with_what_to_install(tmp_path: Path) -> None:
    reason = "no_such_package is not installed: pip install such, and --python infinity-emb=PYTHON"
    for given in (bench(tmp_path), bench(tmp_path, **{"infinity-emb": sys.executable})):
        with pytest.raises(CannotRunError, match=reason):
            find_python(given, Environment("infinity-emb", ("json", "no_such_package"), "such"))
    with pytest.raises(CannotRunError, match="does not run"):
        find_python(bench(tmp_path, **{"vllm-serve": "/bin/false"}), Environment("vllm-serve", ("json",), ""))
    with pytest.raises(CannotRunError, match="does not run"):
        find_python(bench(tmp_path, **{"vllm-serve": "/no/python"}), Environment("vllm-serve", ("json",), ""))


def test_the_python_is_the_named_one_and_the_versions_are_its_own(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert find_python(bench(tmp_path, here=str(link)), Environment("here", ("json",), ""))[0] == str(link)
    python, versions = find_python(bench(tmp_path), Environment("here", ("json", "numpy", "grpc"), ""))
    assert python == sys.executable
    assert [word.split()[0] for word in versions.split(", ")] == ["numpy", "grpcio"]
