"""The search for a tritonserver, its environment and its command line."""

import os
import sys
from pathlib import Path

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server import tritonserver
from tritonembed_manager.server.settings import ServerSettings
from tritonembed_manager.server.tritonserver import (
    PYTHON,
    STUB,
    Installation,
    find_tritonserver,
    preload_tcmalloc,
    server_command,
)


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine without any tritonserver."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", tmp_path / "opt" / "bin" / "tritonserver")
    monkeypatch.setattr(tritonserver, "_wheel_folder", lambda: None)
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_given_program_wins(bare_machine, monkeypatch):
    program(bare_machine / "path" / "tritonserver")
    monkeypatch.setenv("PATH", str(bare_machine / "path"))
    given = program(bare_machine / "mine" / "bin" / "triton")
    assert find_tritonserver(given, bare_machine).binary == given


def test_path_comes_before_the_containers_place(bare_machine, monkeypatch):
    contained = program(bare_machine / "opt" / "bin" / "tritonserver")
    assert find_tritonserver(None, bare_machine).binary == contained
    on_path = program(bare_machine / "path" / "tritonserver")
    monkeypatch.setenv("PATH", str(bare_machine / "path"))
    assert find_tritonserver(None, bare_machine).binary == on_path


def test_the_programs_backends_are_in_the_folder_next_to_it(bare_machine):
    given = program(bare_machine / "triton" / "bin" / "tritonserver")
    assert find_tritonserver(given, bare_machine).backends is None
    backends = bare_machine / "triton" / "backends"
    backends.mkdir()
    assert find_tritonserver(given, bare_machine).backends == backends


@pytest.mark.parametrize(("embedded", "comes_first"), [(PYTHON, True), ("3.1", False)])
def test_this_python_comes_first_if_the_stub_embeds_it(bare_machine, embedded, comes_first):
    given = program(bare_machine / "triton" / "bin" / "tritonserver")
    stub = program(bare_machine / "triton" / "backends" / "python" / STUB)
    stub.write_bytes(b"\x7fELF\0libpython" + embedded.encode() + b".so.1.0\0")
    path = find_tritonserver(given, bare_machine).environment.get("PATH", "")
    assert path.startswith(str(Path(sys.executable).parent)) == comes_first


def test_a_given_path_that_is_no_program_is_named(bare_machine):
    with pytest.raises(StartError, match="--tritonserver"):
        find_tritonserver(bare_machine / "nothing", bare_machine)


def test_a_missing_server_is_one_line_with_the_places_that_were_searched(bare_machine):
    with pytest.raises(StartError, match=r"PATH.*/opt/tritonserver.*nvidia-pytriton") as caught:
        find_tritonserver(None, bare_machine)
    assert "\n" not in str(caught.value)


@pytest.fixture
def wheel(bare_machine, monkeypatch):
    """A wheel's folder, in the layout of nvidia-pytriton."""
    folder = bare_machine / "site" / "pytriton" / "tritonserver"
    program(folder / "bin" / "tritonserver")
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        program(folder / "backends" / "python" / name)
    (folder / "python_backend_stubs" / PYTHON).mkdir(parents=True)
    (folder / "python_backend_stubs" / PYTHON / STUB).write_text("stub")
    libpython = bare_machine / "lib" / f"libpython{PYTHON}.so.1.0"
    libpython.parent.mkdir()
    libpython.touch()
    monkeypatch.setattr(tritonserver, "_wheel_folder", lambda: folder)
    monkeypatch.setattr(tritonserver.sysconfig, "get_config_var", lambda _: str(libpython.parent))
    return folder


def test_the_wheels_backend_is_combined_with_the_stub_of_this_python(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    work = tmp_path / "work"
    found = find_tritonserver(None, work)
    assert found.binary == wheel / "bin" / "tritonserver"
    assert found.backends == work / "backends"
    stub = work / "backends" / "python" / STUB
    assert stub.read_text() == "stub"
    assert os.access(stub, os.X_OK)
    assert (work / "backends" / "python" / "libtriton_python.so").resolve().parent == wheel / "backends" / "python"
    libraries = found.environment["LD_LIBRARY_PATH"].split(":")
    assert libraries == [str(wheel.parents[1] / "nvidia_pytriton.libs"), str(tmp_path / "lib"), "/mine"]
    assert found.environment["PATH"].startswith(str(Path(sys.executable).parent))
    find_tritonserver(None, work)


def test_a_python_without_a_stub_is_refused_with_the_versions_that_have_one(wheel, tmp_path):
    (wheel / "python_backend_stubs" / PYTHON).rename(wheel / "python_backend_stubs" / "3.8")
    with pytest.raises(StartError, match=rf"Python {PYTHON}, only for 3\.8"):
        find_tritonserver(None, tmp_path)


@pytest.mark.usefixtures("wheel")
def test_a_missing_libpython_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "lib" / f"libpython{PYTHON}.so.1.0").unlink()
    monkeypatch.setattr(tritonserver.sys, "base_prefix", str(tmp_path))
    with pytest.raises(StartError, match=rf"apt-get install libpython{PYTHON}$"):
        find_tritonserver(None, tmp_path)


SETTINGS = {
    "host": "0.0.0.0",
    "grpc_port": 50051,
    "http_port": 8000,
    "metrics_port": 8002,
    "http_host": "127.0.0.1",
    "metrics_host": "127.0.0.1",
    "model_control_mode": "none",
    "tritonserver": None,
    "mps": True,
    "startup_timeout": 1800.0,
    "drain_timeout": 30.0,
    "log_verbose": False,
    "log_requests": True,
}


def flags(**settings):
    command = server_command(
        Installation(Path("/t/bin/tritonserver"), Path("/t/backends")),
        Path("/r"),
        ServerSettings(**{**SETTINGS, **settings}),
        "tritonembed_1_",
        gpu_metrics=settings.pop("gpu_metrics", False),
    )
    return command[1:]


def test_the_server_gets_addresses_repository_backends_and_region_prefix():
    given = flags(host="127.0.0.1", grpc_port=1, http_port=2, metrics_port=3, drain_timeout=7)
    assert {
        "--model-repository=/r",
        "--grpc-address=127.0.0.1",
        "--grpc-port=1",
        "--http-address=127.0.0.1",
        "--http-port=2",
        "--metrics-address=127.0.0.1",
        "--metrics-port=3",
        "--exit-timeout-secs=7",
        "--backend-directory=/t/backends",
        "--backend-config=python,shm-region-prefix-name=tritonembed_1_",
    } <= set(given)


@pytest.mark.parametrize(
    ("host", "grpc", "http"),
    [("localhost", "127.0.0.1", "127.0.0.1"), ("::1", "[::1]", "ipv6:::1"), ("::", "[::]", "ipv6:::")],
)
def test_names_and_ipv6_have_the_forms_that_tritons_listeners_understand(host, grpc, http):
    expected = {f"--grpc-address={grpc}", f"--http-address={http}", f"--metrics-address={http}"}
    assert expected <= set(flags(host=host, http_host=host, metrics_host=host))


def test_tritons_http_and_metrics_listen_on_this_machine_only_by_default():
    default = set(flags(host="0.0.0.0"))
    assert {"--grpc-address=0.0.0.0", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= default
    asked = set(flags(http_host="10.0.0.1", metrics_host="0.0.0.0"))
    assert {"--http-address=10.0.0.1", "--metrics-address=0.0.0.0"} <= asked


def test_explicit_control_loads_every_model_at_the_start():
    assert "--load-model=*" in flags(model_control_mode="explicit")
    assert "--load-model=*" not in flags()


@pytest.mark.parametrize(
    ("verbose", "requests", "per_request"), [(False, True, False), (True, True, True), (True, False, False)]
)
def test_triton_logs_single_requests_only_when_verbose_and_not_disabled(verbose, requests, per_request):
    assert ("--log-verbose=1" in flags(log_verbose=verbose, log_requests=requests)) == per_request


def installed(*names: str):  # type: ignore[no-untyped-def]
    return lambda name: f"lib{name}.so.4" if name in names else None


def test_tcmalloc_minimal_is_preferred_to_tcmalloc_with_its_profiler() -> None:
    assert preload_tcmalloc({}, installed("tcmalloc", "tcmalloc_minimal")) == {"LD_PRELOAD": "libtcmalloc_minimal.so.4"}
    assert preload_tcmalloc({}, installed("tcmalloc")) == {"LD_PRELOAD": "libtcmalloc.so.4"}


def test_without_tcmalloc_nothing_changes() -> None:
    assert preload_tcmalloc({}, installed("jemalloc")) == {}


def test_the_users_preload_stays_and_an_empty_variable_turns_tcmalloc_off() -> None:
    assert preload_tcmalloc({"LD_PRELOAD": "libjemalloc.so.2"}, installed("tcmalloc")) == {}
    assert preload_tcmalloc({"LD_PRELOAD": ""}, installed("tcmalloc")) == {}


def test_triton_sends_its_spans_where_it_is_told_and_nowhere_by_default():
    assert not [flag for flag in flags() if flag.startswith("--trace")]
    asked = [flag.removeprefix("--trace-config=") for flag in flags(triton_traces="http://c:4318/v1/traces")]
    assert asked[-5:] == [
        "mode=opentelemetry",
        "rate=1",
        "level=TIMESTAMPS",
        "opentelemetry,url=http://c:4318/v1/traces",
        "opentelemetry,resource=service.name=tritonembed-server",
    ]
