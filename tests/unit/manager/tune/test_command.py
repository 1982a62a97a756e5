"""The command line of `tune`."""

import signal

import pytest
from tests.models import ModelShelf
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.errors import ManagerError
from tritonembed_manager.server.signals import Interrupted
from tritonembed_manager.tune import run


def manager(*arguments, env=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


@pytest.fixture
def asked(monkeypatch):
    """The options of measurements, which are not run."""
    calls = []
    monkeypatch.setattr(run, "run_tune", calls.append)
    return calls


def test_all_options_arrive(asked, tmp_path):
    lists = ["--tokenizer-instances", "1,2", "--replicas", "2,3", "--max-batch-tokens", "4096,8192"]
    loads = ["--load", "50x64@32", "--load", "20x1@8", "--second-load", "9x9@9"]
    rest = ["--seconds", 1.5, "--budget-minutes", 7, "--device", "cuda", "--gpus", "0,1", "--executor", "direct"]
    result = manager("tune", tmp_path / "out", "--model", "org/name", *lists, *loads, *rest, "--force")
    assert result.exit_code == 0, result.output
    [options] = asked
    assert (options.tokenizer_instances, options.replicas, options.max_batch_tokens) == ("1,2", "2,3", "4096,8192")
    assert (list(options.loads), options.second_load) == (["50x64@32", "20x1@8"], "9x9@9")
    assert (options.seconds, options.budget_minutes, options.force) == (1.5, 7, True)
    settings = options.settings
    assert (settings.model, settings.device, settings.gpus, settings.executor) == ("org/name", "cuda", (0, 1), "direct")
    assert (settings.replicas, settings.max_batch_tokens) == (1, None)


def test_every_option_comes_from_the_environment_too(asked, tmp_path):
    variables = {
        "MODEL": "org/name",
        "REPLICAS": "1,2",
        "LOAD": "50x64@32,50x1@1 20x1@8",
        "SECOND_LOAD": "9x9@9",
        "SECONDS": "1.5",
        "BUDGET_MINUTES": "7",
        "FORCE": "1",
    }
    (tmp_path / "thesis.txt").touch()
    result = manager("tune", tmp_path, env={f"TRITONEMBED_{name}": value for name, value in variables.items()})
    assert result.exit_code == 0, result.output
    [options] = asked
    assert (options.settings.model, options.replicas) == ("org/name", "1,2")
    assert (list(options.loads), options.second_load) == (["50x64@32,50x1@1", "20x1@8"], "9x9@9")
    assert (options.seconds, options.budget_minutes, options.force) == (1.5, 7, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--load", "50x64"], "--load: '50x64' is not a load such as 50x64@32"),
        (["--load", "500x1@1"], "--load 500x1@1: the longest text of this model has 64 tokens"),
        (["--replicas", "0"], "--replicas: '0' is not a list of numbers above 0"),
        (["--tokenizer-instances", "1", "--replicas", "1", "--max-batch-tokens", "64"], "nothing to choose"),
        (["--max-batch-tokens", "8,64"], "the longest text of this model has 64 tokens"),
        (["--max-batch-tokens", "99999999999999999999"], "at most 262144 can be tried"),
        (["--budget-minutes", "0.5", "--seconds", "60"], "--budget-minutes 0.5: one server, its start and its runs"),
        (["--gpus", "0"], "--gpus needs --device cuda"),
        (["--tritonserver", "/no/such/program"], "is not a program"),
        (["more"], "unexpected argument 'more'"),
    ],
)
def test_invalid_options_are_one_line_and_exit_code_2(arguments, reason, shelf: ModelShelf, tmp_path):
    result = manager("tune", tmp_path / "out", "--model", shelf("bert"), "--device", "cpu", *arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("tritonembed-manager: ")
    assert reason in line
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_at_once(asked, tmp_path):
    (tmp_path / "thesis.txt").touch()
    result = manager("tune", tmp_path, "--model", "org/name")
    assert result.exit_code == 2
    assert "was not written by render" in result.stderr
    assert not asked


@pytest.mark.parametrize(
    ("error", "code"),
    [(ManagerError("no server worked"), 1), (Interrupted(signal.SIGINT), 130)],
)
def test_errors_and_signals_have_their_own_exit_code(error, code, monkeypatch, tmp_path):
    def fail(options):
        raise error

    monkeypatch.setattr(run, "run_tune", fail)
    assert manager("tune", tmp_path / "out", "--model", "org/name").exit_code == code
