"""vLLM's own parser reads the engine arguments on the manager's command line."""

import json
import re
import subprocess

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server import vllm_arguments as engine_arguments
from tritonembed_manager.server.vllm_arguments import answer, parse, with_dashes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("--max_model_len", "--max-model-len"),
        ("--max_model_len=a_b", "--max-model-len=a_b"),
        ("--compilation_config.max_cudagraph_capture_size", "--compilation-config.max_cudagraph_capture_size"),
        ("my_model", "my_model"),
        ("-a_b", "-a_b"),
    ],
)
def test_underscores_in_an_options_name_are_dashes(written, meant):
    assert with_dashes(written) == meant


def test_only_given_arguments_are_kept_under_their_python_name_and_type():
    given = answer(
        [
            *("--max_model_len", "1k", "--dtype=float32", "--enforce-eager", "--no-enable-prefix-caching"),
            *("--hf-overrides", '{"a": 1}', "--compilation-config.max_cudagraph_capture_size", "3"),
        ]
    )["given"]
    assert given == {
        "max_model_len": 1000,
        "dtype": "float32",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": 1},
        "compilation_config": {"max_cudagraph_capture_size": 3},
    }


def test_an_abbreviation_is_not_guessed():
    assert answer(["--max-model", "512"])["unknown"] == "--max-model"


def test_a_value_that_vllm_refuses_is_named_with_its_argument():
    assert re.search(r"--max-model-len.*'abc'", answer(["--max-model-len", "abc"])["error"])


def test_a_misspelt_argument_is_named_with_the_right_one(vllm_in_process):
    with pytest.raises(StartError, match=r"unknown option --max-model-length; did you mean --max-model-len\?"):
        parse(["--max-model-length", "512"])


def without_processes(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("vLLM is not needed")

    monkeypatch.setattr(engine_arguments.subprocess, "run", fail)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--dtype", name] for name in ("auto", "bfloat16", "float", "float16", "float32", "half")),
        ["--dtype=float32", "--max-model-len=0512", "--dtype", "half"],
        ["--quantization", "fp8", "--revision", "a=b"],
        [],
    ],
)
def test_usual_values_are_read_without_vllm_as_vllm_reads_them(monkeypatch, arguments):
    expected = answer(arguments)["given"]
    without_processes(monkeypatch)
    assert parse(arguments, environment={}) == expected


def test_variables_with_usual_values_are_read_without_vllm(monkeypatch):
    without_processes(monkeypatch)
    variables = {"TRITONEMBED_DTYPE": "half", "TRITONEMBED_MAX_MODEL_LEN": "64", "TRITONEMBED_CLIENT_SERVER": "a"}
    assert parse(["--dtype=float32"], environment=variables) == {"dtype": "float32", "max_model_len": 64}


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--dtype", "int3"], {}),
        (["--dtype"], {}),
        (["--max-model-len", "1k"], {}),
        (["--revision", "--dtype=half"], {}),
        (["--dtype=half", "--enforce-eager"], {}),
        (["--dtype=half"], {"TRITONEMBED_SEED": "3"}),
    ],
)
def test_all_else_is_left_to_vllm(monkeypatch, arguments, variables):
    answering(monkeypatch, {"given": {"seen": True}})
    assert parse(arguments, environment=variables) == {"seen": True}


def answering(monkeypatch, content):
    done = subprocess.CompletedProcess([], 0, stdout=f"a line of vLLM\n{json.dumps(content)}\n", stderr="")
    monkeypatch.setattr(engine_arguments.subprocess, "run", lambda *_, **__: done)


def test_a_misspelt_option_of_ours_is_named_too(monkeypatch):
    answering(monkeypatch, {"unknown": "--repicas", "options": ["--revision"]})
    with pytest.raises(StartError, match=r"unknown option --repicas; did you mean --replicas\?"):
        parse(["--repicas=2"], own_options=["--replicas"])


def test_vllms_error_about_a_value_is_passed_on(monkeypatch):
    answering(monkeypatch, {"error": "argument --seed: invalid int value: 'x'"})
    with pytest.raises(StartError, match=r"argument --seed: invalid int value"):
        parse(["--seed", "x"])


def test_a_parser_that_breaks_is_one_line(monkeypatch):
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback …\nImportError: no libnuma\n")
    monkeypatch.setattr(engine_arguments.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(StartError, match=r"^vLLM's argument parser failed: ImportError: no libnuma$"):
        parse(["--seed", "1"])


def test_without_engine_arguments_vllm_is_not_started(monkeypatch):
    monkeypatch.setattr(engine_arguments.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert parse([]) == {}


def test_a_stray_word_is_named():
    with pytest.raises(StartError, match="unexpected argument 'bert'"):
        parse(["bert"])


def test_if_vllm_is_missing_the_option_is_named(monkeypatch):
    monkeypatch.setattr(engine_arguments.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StartError, match=r"unknown option --seed \(vLLM.*not installed"):
        parse(["--seed=3"])


def test_every_engine_argument_is_a_variable_too():
    variables = {
        "TRITONEMBED_MAX_MODEL_LEN": "1k",
        "TRITONEMBED_ENFORCE_EAGER": "true",
        "TRITONEMBED_ENABLE_PREFIX_CACHING": "0",
        "TRITONEMBED_HF_OVERRIDES": '{"a": 1}',
        "TRITONEMBED_DTYPE": "half",
        "TRITONEMBED_SOMETHING_ELSE": "of another command",
    }
    assert answer(["--dtype=float32"], variables)["given"] == {
        "max_model_len": 1000,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": 1},
        "dtype": "float32",
    }


def test_a_variable_that_is_wrong_is_named():
    assert "--max-model-len" in answer([], {"TRITONEMBED_MAX_MODEL_LEN": "abc"})["error"]
    assert "TRITONEMBED_ENFORCE_EAGER" in answer([], {"TRITONEMBED_ENFORCE_EAGER": "perhaps"})["error"]


def test_only_variables_that_no_option_of_ours_reads_are_vllms(monkeypatch):
    """vLLM is started only if there are such variables beside the usual ones, because that takes seconds."""
    asked = []

    def run(*_, input, **__):
        asked.append(json.loads(input))
        return subprocess.CompletedProcess([], 0, stdout='{"given": {"seed": 3}}\n', stderr="")

    monkeypatch.setattr(engine_arguments.subprocess, "run", run)
    ours = {
        "TRITONEMBED_GPU_MEMORY_UTILIZATION": "0.5",
        "TRITONEMBED_CLIENT_HOST": "a",
        "TRITONEMBED_BLOCK_SIZE": "",
        "PATH": "b",
    }
    assert parse([], own_options=["--gpu-memory-utilization"], environment=ours) == {}
    assert asked == []
    found = parse([], own_options=["--gpu-memory-utilization"], environment=ours | {"TRITONEMBED_SEED": "3"})
    assert (found, asked) == ({"seed": 3}, [{"TRITONEMBED_SEED": "3"}])


def test_if_vllm_is_missing_its_variables_are_ignored(monkeypatch):
    monkeypatch.setattr(engine_arguments.importlib.util, "find_spec", lambda _: None)
    assert parse([], environment={"TRITONEMBED_SEED": "3"}) == {}
