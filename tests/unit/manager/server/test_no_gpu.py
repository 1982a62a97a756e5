"""If a requested GPU does not exist, the error is one line, before anything is started."""

import pytest
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.router.control import start
from tritonembed_manager.server import foreground, machine
from tritonembed_manager.tune import run as tuning


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    """A machine without a GPU. Looking for Triton already fails the test."""

    def started(*_):
        raise AssertionError("something was started")

    monkeypatch.setattr(machine, "_has_device", lambda _: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for module in (foreground, start, tuning):
        monkeypatch.setattr(module, "find_tritonserver", started)


def manager(*arguments, env=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    return result.exit_code, result.output


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["serve", "replica", "tune"])
def test_a_missing_gpu_is_one_line_and_exit_code_2(command, tmp_path):
    line = "tritonembed-manager: --device cuda: this machine has no NVIDIA GPU\n"
    out = [tmp_path / "out"] if command == "tune" else []
    assert manager(command, *out, "--model", "org/name", "--device", "cuda") == (2, line)
    assert manager(command, *out, "--model", "org/name", env={"TRITONEMBED_DEVICE": "cuda"}) == (2, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_gpu")
def test_a_repository_for_a_gpu_can_be_rendered_without_a_gpu_but_not_run(tmp_path, unused_tcp_port_factory):
    repository = tmp_path / "models"
    assert manager("render", repository, "--model", "org/name", "--device", "cuda")[0] == 0
    options = ("--port", "--http-port", "--metrics-port")
    ports = [word for option in options for word in (option, unused_tcp_port_factory())]
    line = "tritonembed-manager: --model-repository (KIND_GPU): this machine has no NVIDIA GPU\n"
    assert manager("replica", "--model-repository", repository, *ports) == (2, line)
