"""The command `tritonembed-manager`: its options, their environment variables, its exit codes."""

import json
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.errors import ManagerError
from tritonembed_manager.server import foreground
from tritonembed_manager.server.repository import read_configs

RENDER_VARIABLES = {
    "TRITONEMBED_MODEL": "org/name",
    "TRITONEMBED_DEVICE": "cuda",
    "TRITONEMBED_TOKENIZER_INSTANCES": "5",
    "TRITONEMBED_REPLICAS": "3",
    "TRITONEMBED_GPUS": "0,1",
    "TRITONEMBED_MAX_BATCH_TOKENS": "4096",
    "TRITONEMBED_EXECUTOR": "scheduler",
}
REPLICA_VARIABLES = {
    "TRITONEMBED_HOST": "127.0.0.1",
    "TRITONEMBED_PORT": "1001",
    "TRITONEMBED_HTTP_PORT": "1002",
    "TRITONEMBED_METRICS_PORT": "1003",
    "TRITONEMBED_MODEL_CONTROL_MODE": "explicit",
    "TRITONEMBED_STARTUP_TIMEOUT": "11",
    "TRITONEMBED_DRAIN_TIMEOUT": "12",
    "TRITONEMBED_LOG_VERBOSE": "1",
    "TRITONEMBED_DISABLE_LOG_REQUEST": "1",
}


def manager(*arguments, env=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


@pytest.fixture
def started(monkeypatch):
    """The servers that `replica` would have started."""
    calls = []
    monkeypatch.setattr(foreground, "run_replica", lambda server, **rest: calls.append((server, rest)))
    return calls


def test_render_takes_every_option_from_the_environment(tmp_path):
    assert manager("render", tmp_path / "out", env=RENDER_VARIABLES).exit_code == 0
    configs = read_configs(tmp_path / "out")
    model = json.loads((tmp_path / "out" / "model.json").read_text())
    assert configs["tokenizer"].instance_group[0].count == 5
    assert configs["embedder"].instance_group[0].count == 3
    assert list(configs["embedder"].instance_group[0].gpus) == [0, 1]
    assert model["model"] == "org/name"
    assert model["engine"]["executor"] == "scheduler"
    assert model["engine"]["max_batch_tokens"] == 4096


def test_the_command_line_wins_over_the_environment(tmp_path):
    manager("render", tmp_path / "out", "--replicas", 1, env=RENDER_VARIABLES)
    assert read_configs(tmp_path / "out")["embedder"].instance_group[0].count == 1


def test_workers_is_another_name_of_tokenizer_instances(tmp_path):
    manager("render", tmp_path / "out", "--model", "m", "--workers", 7, "--device", "cpu")
    assert read_configs(tmp_path / "out")["tokenizer"].instance_group[0].count == 7


def test_replica_takes_every_option_from_the_environment(started):
    assert manager("replica", env=RENDER_VARIABLES | REPLICA_VARIABLES).exit_code == 0
    [(server, rest)] = started
    assert (server.host, *server.ports().values()) == ("127.0.0.1", 1001, 1002, 1003)
    assert server.model_control_mode == "explicit"
    assert (server.startup_timeout, server.drain_timeout) == (11, 12)
    assert server.log_verbose
    assert not server.log_requests
    assert rest["models"][0].model == "org/name"
    assert rest["models"][0].tokenizer_instances == 5


@pytest.mark.parametrize("command", ["render", "replica"])
def test_every_option_is_also_an_environment_variable(command):
    options = [option for option in get_command(app).commands[command].params if option.param_type_name == "option"]
    without = {option.name for option in options if not option.envvar}
    assert without <= {"help", "force"}
    for option in (option for option in options if option.envvar):
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        assert all(
            name == f"TRITONEMBED_{opt[2:].replace('-', '_').upper()}"
            for name, opt in zip(names, option.opts, strict=True)
        )


def test_the_defaults_are_those_of_the_manual(started):
    manager("replica", "--model", "m", "--device", "cpu")
    [(server, rest)] = started
    assert (server.host, server.ports()) == (
        "0.0.0.0",
        {"--port": 50051, "--http-port": 8000, "--metrics-port": 8002},
    )
    assert rest["models"][0].replicas == 1
    assert rest["models"][0].vllm == {}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["replica"], "--model is missing"),
        (["replica", "--model", "/no/such/model"], "--model: there is no folder /no/such/model"),
        (["replica", "--model", "m", "--device", "cpu", "--gpus", "0"], "--gpus needs --device cuda"),
        (["render", "--replicas=2", "--model", "m", "--dtype", "auto", "x"], "the folder to write comes first"),
    ],
)
def test_a_wrong_call_exits_with_2_and_one_line(arguments, line):
    result = manager(*arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "0"), ("--replicas", "0"), ("--device", "tpu"), ("--model-control-mode", "auto")]
)
def test_a_value_out_of_range_exits_with_2_and_names_the_option(option, value):
    result = manager("replica", "--model", "m", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_a_rendered_repository_is_run_unchanged_and_options_that_would_change_it_are_refused(tmp_path, started):
    assert manager("replica", "--model-repository", tmp_path).exit_code == 0
    assert started[0][1]["repository"] == tmp_path
    for option in (["--replicas", "2"], ["--model", "m"], ["--dtype", "float32"]):
        result = manager("replica", "--model-repository", tmp_path, *option)
        assert (result.exit_code, option[0] in result.stderr) == (2, True)
    assert len(started) == 1


def test_a_failure_while_serving_exits_with_1(monkeypatch):
    def fails(*_, **__):
        raise ManagerError("a python process died")

    monkeypatch.setattr(foreground, "run_replica", fails)
    result = manager("replica", "--model", "m", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (1, "tritonembed-manager: a python process died\n")


def test_a_folder_that_is_no_model_exits_with_2_and_one_line(tmp_path):
    result = manager("render", tmp_path / "out", "--model", tmp_path, "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.startswith("tritonembed-manager: --model: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_its_packages_the_command_names_those_to_install():
    code = "import sys; sys.modules['typer'] = None; from tritonembed_manager.cli import main; main()"
    result = run_python(code)
    assert result.returncode == 1
    assert result.stderr == (
        "tritonembed-manager needs more than the client library: pip install 'tritonembed[manager]'\n"
    )


def test_help_loads_neither_grpc_nor_numpy_nor_vllm():
    code = """
import sys
sys.argv = ["tritonembed-manager", "replica", "--help"]
from tritonembed_manager.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"grpc", "numpy", "vllm", "torch", "tritonclient", "google.protobuf", "transformers"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""
    result = run_python(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_command_runs_as_a_module_too():
    result = subprocess.run(
        [sys.executable, "-m", "tritonembed_manager", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "render" in result.stdout
    assert "replica" in result.stdout


def test_several_models_are_rendered_into_one_repository(tmp_path):
    result = manager("render", tmp_path / "out", "--model", "org/a", "--model", "b=org/b", "--device", "cpu")
    assert result.exit_code == 0
    assert {"embedding", "b", "b_embedder"} <= set(read_configs(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "b" / "model.json").read_text())["model"] == "org/b"


def test_replica_takes_the_models_of_a_file(tmp_path, started):
    file = tmp_path / "models.yaml"
    file.write_text("models:\n - {path: org/a}\n - {name: b, path: org/b, replicas: 3}\n")
    assert manager("replica", "--models", file, "--device", "cpu").exit_code == 0
    [(_, rest)] = started
    assert [(model.model, model.served.name, model.replicas) for model in rest["models"]] == [
        ("org/a", "embedding", 1),
        ("org/b", "b", 3),
    ]
    result = manager("replica", "--models", file, "--model", "org/a", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "--model and --models exclude each other" in result.stderr


def test_the_variable_of_the_model_may_have_spaces(tmp_path, started):
    (tmp_path / "my model").mkdir()
    assert manager("replica", "--device", "cpu", env={"TRITONEMBED_MODEL": str(tmp_path / "my model")}).exit_code == 0
    [(_, rest)] = started
    assert [model.model for model in rest["models"]] == [str(tmp_path / "my model")]
