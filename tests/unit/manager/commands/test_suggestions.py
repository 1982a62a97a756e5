"""The error for a misspelt option suggests the right option, in every command of every program."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from tritonembed.cli import app as client
from tritonembed_manager.commands.app import app
from tritonembed_manager.server.vllm_arguments import did_you_mean
from tritonembed_perf import commands as bench

PROGRAMS = {"tritonembed": client.app, "tritonembed-manager": app, "tritonembed-bench": bench.app}
OUT = "no-such-folder/out"


@pytest.mark.parametrize(
    ("program", "arguments", "meant"),
    [
        ("tritonembed", ["--modle=x", "health"], "--model"),
        ("tritonembed", ["embed", "--modle", "x", "a text"], "--model"),
        ("tritonembed", ["health", "--modle", "x"], "--model"),
        ("tritonembed", ["info", "--modle", "x"], "--model"),
        ("tritonembed-manager", ["--verison"], "--version"),
        ("tritonembed-manager", ["render", OUT, "--modle", "x"], "--model"),
        ("tritonembed-manager", ["render", "--modle", "x", OUT], "--model"),
        ("tritonembed-manager", ["replica", "--modle", "x"], "--model"),
        ("tritonembed-manager", ["replica", "--modle=x", "--device", "cpu"], "--model"),
        ("tritonembed-manager", ["replica", "--model-repository", ".", "--prot", "5"], "--port"),
        ("tritonembed-manager", ["serve", "--modle", "x"], "--model"),
        ("tritonembed-manager", ["serve", "--num-replica", "2", "--modle", "x"], "--model"),
        ("tritonembed-manager", ["serve", "--server", "host:1", "--prot", "5"], "--port"),
        ("tritonembed-manager", ["tune", OUT, "--modle", "x"], "--model"),
        ("tritonembed-manager", ["tune", "--modle", "x", OUT], "--model"),
        ("tritonembed-manager", ["status", "--mangaer", "x"], "--manager"),
        ("tritonembed-bench", ["--verison"], "--version"),
        ("tritonembed-bench", ["run", "--modle", "x"], "--model"),
        ("tritonembed-bench", ["compare", "--modle", "x"], "--model"),
        ("tritonembed-bench", ["overhead", "--modle", "x"], "--model"),
        ("tritonembed-bench", ["perf-analyzer", "--modle", "x"], "--model"),
    ],
)
def test_the_error_for_a_misspelt_option_suggests_the_right_one(program, arguments, meant):
    result = CliRunner().invoke(PROGRAMS[program], arguments)
    said = result.output + str(result.exception)
    assert result.exit_code != 0
    assert any(f"{words}{meant}" in said for words in ("did you mean ", "Did you mean ", "Possible options: ")), said


def test_our_options_are_suggested_before_vllms_short_options(vllm_in_process):
    """vLLM's parser also knows -dpn."""
    arguments = ["serve", "--model", "x", "--device", "cpu", "--drain-timout", "3"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "did you mean --drain-timeout?" in result.output) == (2, True)


def test_an_option_that_resembles_none_gets_no_suggestion():
    assert did_you_mean("--admn", ["-dpn", "--seed"]) == ""
    assert did_you_mean("--qqq=--model", ["--model"]) == ""


@pytest.mark.parametrize("arguments", [["verify", "--modle", "x"], ["verify", "--model", "x"]])
def test_verify_takes_its_model_first(arguments):
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "the model comes first, before --mod" in result.output) == (2, True)


@pytest.mark.parametrize("program", ["tritonembed", "tritonembed_manager", "tritonembed_perf"])
def test_every_program_has_its_version(program):
    command = "from tritonembed.cli import main; main()" if program == "tritonembed" else None
    start = [sys.executable, *(("-c", command) if command else ("-m", program)), "--version"]
    ran = subprocess.run(start, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()[1:], ran.stderr) == (0, [version("tritonembed")], "")
