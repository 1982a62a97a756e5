"""The wheel works outside of a checkout, with the packages that its metadata names and no others."""

import zipfile
from pathlib import Path

import pytest
from tests.deploy.wheels import build, install, required, run
from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with what `tritonembed[manager]` requires."""
    names = required(wheel, frozenset({"manager", "cli"}))
    return install(wheel, tmp_path_factory.mktemp("bare"), names)


def test_nothing_comes_from_the_checkout(installed):
    script = "import tritonembed, tritonembed_manager.cli, tritonembed_protocol as p; print(p.__file__)"
    shown = run(installed / "python", "-c", script)
    assert shown.stdout.startswith(str(installed.parent)), shown.stderr
    assert run(installed / "python", "-c", "import transformers").returncode == 1


@pytest.mark.parametrize("command", ["tritonembed embed", "tritonembed-manager serve"])
def test_a_command_has_its_help(installed, command):
    program, name = command.split()
    shown = run(installed / program, name, "--help")
    assert (shown.returncode, "--port" in shown.stdout) == (0, True), shown.stderr


def test_a_manager_of_the_wheel_serves_and_its_client_embeds(installed):
    program = [str(installed / "tritonembed-manager")]
    with (
        fake_triton() as fake,
        serving("--model=m", f"--server={fake.address}", program=program, folder=Path("/")) as manager,
    ):
        shown = run(
            installed / "tritonembed", "embed", "--host=127.0.0.1", f"--port={manager.port}", "--stream", "a text"
        )
        assert shown.returncode == 0, shown.stderr
        assert '"embedding"' in shown.stdout
        shown = run(installed / "tritonembed-manager", "status", f"--manager=127.0.0.1:{manager.http_port}")
        assert "1 ready" in shown.stdout


def test_a_manager_of_the_wheel_renders_the_repository_that_is_in_it(installed, tmp_path):
    shown = run(installed / "tritonembed-manager", "render", tmp_path / "models", "--model=org/name", "--device=cpu")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "models" / "embedder" / "1" / "model.py").is_file()


def test_the_wheel_holds_what_it_should(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    packages = {f"tritonembed_{name}" for name in ("protocol", "engine", "manager", "bulk", "perf")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tritonembed", *packages}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if "__pycache__" in name or "chaos" in name] == []
