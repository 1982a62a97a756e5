"""`tritonembed-manager replica` on real tritonservers: it is ready when it infers, and leaves nothing when it ends.

Most tests need no model that embeds. Their `embedding` is a python model that echoes its text and starts at once.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tests import hostile_folder
from tests.processes import command, model_stubs
from tritonclient.grpc import InferenceServerClient, InferInput

from tritonembed_manager.server.process import family, process_table
from tritonembed_manager.server.repository import render
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_perf.server import free_ports

START_LIMIT_S = 120
SHARED_MEMORY = Path("/dev/shm")

ECHO_CONFIG = """
name: "embedding"
backend: "python"
max_batch_size: 4
input { name: "text" data_type: TYPE_STRING dims: 1 }
output { name: "embedding" data_type: TYPE_STRING dims: 1 }
instance_group { kind: KIND_CPU count: 2 }
"""
ECHO_MODEL = """
import os, subprocess, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        mode = os.environ.get("ECHO_MODE", "")
        if mode == "our-error":
            raise pb_utils.TritonModelException("tritonembed: the model has no tokenizer")
        if mode == "other-error":
            raise ValueError("boom")
        if mode == "slow-start":
            time.sleep(60)
        if mode == "with-child":
            # Like a tensor-parallel worker, and in a session of its own.
            self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)

    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy() for request in requests]
        if os.environ.get("ECHO_MODE") == "refuses":
            raise ValueError("no vector today")
        if any(text.ravel()[0] == b"slow" for text in texts):
            open(os.environ["ECHO_INSIDE"], "w").close()
            time.sleep(1.5)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("embedding", text)]) for text in texts]
"""


@pytest.fixture
def echo(tmp_path):
    """A repository whose `embedding` returns its text."""
    folder = tmp_path / "repository" / "embedding"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ECHO_CONFIG)
    (folder / "1" / "model.py").write_text(ECHO_MODEL)
    return tmp_path / "repository"


class Manager:
    """`tritonembed-manager replica` as a process, and its child processes."""

    def __init__(self, *arguments, **environment):
        self.port, http_port, metrics_port = free_ports(3)
        options = ["--host=127.0.0.1", f"--port={self.port}", f"--http-port={http_port}"]
        options.append(f"--startup-timeout={START_LIMIT_S}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tritonembed_manager", "replica", *options, f"--metrics-port={metrics_port}"]
            + [str(argument) for argument in arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen = []

    def family(self):
        """Its living processes, including those that have lost their parent since the last call."""
        self.seen = family(self.process.pid, process_table(), self.seen)
        return self.seen

    def until(self, condition, limit=START_LIMIT_S):
        end = time.monotonic() + limit
        while not (value := condition()):
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)
        return value

    def wait_ready(self):
        line = self.process.stdout.readline()
        assert line.startswith(f"READY grpc 127.0.0.1:{self.port} http "), line + self.process.stderr.read()
        self.family()
        return line

    def stubs(self):
        return model_stubs(self.family())

    def regions(self):
        """This server's regions of shared memory. Their names hold the manager's pid."""
        mine = f"tritonembed_{self.process.pid}_"
        return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(mine)]

    def ended(self, limit=30):
        """Waits for its end, and checks that nothing is left. Returns its exit code and the lines of stderr."""
        _, stderr = self.process.communicate(timeout=limit)
        assert self.family() == []
        assert self.regions() == []
        return self.process.returncode, stderr.splitlines()

    def infer(self, text):
        tensor = InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=object))
        with InferenceServerClient(f"127.0.0.1:{self.port}") as client:
            return client.infer("embedding", [tensor]).as_numpy("embedding")[0, 0]


@pytest.fixture
def replica(tmp_path):
    """Starts managers. Ends the processes that a failed test has left."""
    managers = []

    def start(*arguments, **environment):
        # A manager that is killed can't remove its temporary folder.
        managers.append(Manager(*arguments, **{"TMPDIR": str(tmp_path), **environment}))
        return managers[-1]

    yield start
    for manager in managers:
        for process in manager.family():
            os.kill(process.pid, signal.SIGKILL)
        manager.process.communicate(timeout=30)
        for region in manager.regions():
            region.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_manager_with_exit_code_0_and_nothing_is_left(replica, echo, number):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    assert len(manager.stubs()) == 2
    assert manager.regions()
    manager.process.send_signal(number)
    code, lines = manager.ended()
    assert code == 0
    assert any(number.name in line for line in lines)


def test_sigterm_ends_the_manager_with_exit_code_0_after_requests_in_flight_are_answered(replica, echo, tmp_path):
    inside = tmp_path / "a request is inside the model"
    manager = replica("--model-repository", echo, ECHO_INSIDE=str(inside))
    manager.wait_ready()
    assert len(manager.stubs()) == 2
    assert manager.regions()
    tensor = InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"slow"]], dtype=object))
    answers = []
    with InferenceServerClient(f"127.0.0.1:{manager.port}") as client:
        client.async_infer("embedding", [tensor], lambda result, error: answers.append((result, error)))
        manager.until(inside.exists, limit=30)
        manager.process.send_signal(signal.SIGTERM)
        code, lines = manager.ended()
        assert code == 0
        assert any("SIGTERM" in line for line in lines)
        manager.until(lambda: answers, limit=30)
    [(result, error)] = answers
    assert error is None
    assert result.as_numpy("embedding")[0, 0] == b"slow"


def test_a_killed_manager_ends_its_server(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    manager.family()
    manager.process.kill()
    manager.process.wait()
    manager.until(lambda: not manager.family(), limit=60)
    manager.until(lambda: not manager.regions(), limit=60)


def test_the_next_start_removes_a_killed_managers_leftovers(replica, echo, tmp_path):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    # All are killed at once, so that none can clean up.
    for process in [*manager.family()]:
        os.kill(process.pid, signal.SIGKILL)
    manager.process.wait()
    manager.until(lambda: not manager.family(), limit=60)
    left = list(tmp_path.glob("tritonembed-*"))
    assert left
    assert manager.regions()
    following = replica("--model-repository", echo)
    following.wait_ready()
    assert not any(folder.exists() for folder in left)
    assert manager.regions() == []
    assert following.regions()


@pytest.mark.parametrize("character", [" ", ";$(touch x)'\"&"])
def test_a_server_starts_whatever_the_characters_of_its_paths(replica, echo, tmp_path, monkeypatch, character):
    here = tmp_path / f"current{character}folder"
    mark = hostile_folder.fill(here)
    monkeypatch.chdir(here)
    repository = echo.rename(tmp_path / f"a{character}repository")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    manager = replica("--model-repository", repository, TMPDIR=str(here))
    manager.wait_ready()
    assert manager.infer(b"a text") == b"a text"
    assert not mark.exists(), mark.read_text()
    assert not (here / "x").exists()


def test_a_python_process_that_cannot_start_is_one_line_within_seconds(replica, echo, tmp_path):
    program = tmp_path / "bin" / "bash"
    program.parent.mkdir()
    ran = tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\necho 'bash: /a/stub: Permission denied' >&2\nexit 126\n")
    program.chmod(0o755)
    manager = replica("--model-repository", echo, PATH=f"{program.parent}:{os.environ['PATH']}")
    code, lines = manager.ended(limit=60)
    assert code == 1
    # The time begins at the attempt, which a busy machine reaches late.
    assert time.time() - ran.stat().st_mtime < START_LIMIT_S / 4
    assert lines[-1] == ("tritonembed-manager: a python process of the server could not start: bash: Permission denied")


def test_a_dead_stub_ends_the_server_within_two_seconds_with_the_children_of_all_stubs(replica, echo):
    """The children include processes in a session of their own."""

    def seconds_until_the_end():
        manager = replica("--model-repository", echo, ECHO_MODE="with-child")
        manager.wait_ready()
        assert [process.name for process in manager.family()].count("sleep") == 2
        victim = manager.stubs()[0]
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        code, lines = manager.ended()
        seconds = time.monotonic() - began
        assert code == 1
        died = f"a python process of the model 'embedding' died (pid {victim}): the server is stopped"
        assert lines[-1].endswith(died)
        return seconds

    # A busy machine may be late once. A broken promise is late every time.
    assert any(seconds_until_the_end() < 2 for _ in range(3))


def test_a_killed_server_is_reported_and_its_leftovers_are_removed(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    [server] = [process.pid for process in manager.family() if process.name == "tritonserver"]
    os.kill(server, signal.SIGKILL)
    code, lines = manager.ended()
    assert code == 1
    assert any("signal 9" in line or "died" in line for line in lines)


def test_a_signal_during_the_start_ends_the_manager_before_the_start_is_over(replica, echo):
    manager = replica("--model-repository", echo, ECHO_MODE="slow-start")
    manager.until(manager.stubs)
    manager.process.send_signal(signal.SIGTERM)
    code, lines = manager.ended(limit=40)
    assert code == 0
    assert "start abandoned" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_vllms_parser_and_has_the_same_exit_code(replica, number):
    manager = replica("--model", "a/model", "--device=cpu", "--seed=1")
    os.kill(manager.until(lambda: parser_of(manager.family())), signal.SIGSTOP)
    manager.process.send_signal(number)
    assert manager.ended() == (0, [f"tritonembed-manager: {number.name}: start abandoned"])


def parser_of(processes):
    """The pid of the child that runs vLLM's parser; None if there is none yet."""
    module = "tritonembed_manager.server.vllm_arguments"
    return next((process.pid for process in processes if module in command(process.pid)), None)


def test_a_render_that_a_signal_ends_is_a_failure(tmp_path):
    render = [sys.executable, "-m", "tritonembed_manager", "render", str(tmp_path / "out")]
    rendering = subprocess.Popen(
        [*render, "--model=a/model", "--device=cpu", "--seed=1"], stderr=subprocess.PIPE, text=True
    )
    while (parser := parser_of(family(rendering.pid, process_table()))) is None:
        time.sleep(0.02)
    # The parser never ends by itself.
    os.kill(parser, signal.SIGSTOP)
    rendering.terminate()
    _, stderr = rendering.communicate(timeout=30)
    assert (rendering.returncode, stderr) == (143, "tritonembed-manager: SIGTERM: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_models_own_reason_why_it_cannot_start_is_one_line(replica, echo):
    code, lines = replica("--model-repository", echo, ECHO_MODE="our-error").ended()
    assert code == 2
    assert len(lines) == 2
    assert lines[-1].startswith("tritonembed-manager: the model has no tokenizer")


def test_any_other_failure_to_start_is_one_line_without_a_traceback(replica, echo):
    code, lines = replica("--model-repository", echo, ECHO_MODE="other-error").ended()
    assert code == 1
    assert len(lines) == 2
    assert "failed to load 'embedding' version 1: Internal: ValueError: boom" in lines[-1]
    assert ".py" not in lines[-1]


def test_a_start_that_takes_too_long_is_given_up(replica, echo):
    code, lines = replica("--model-repository", echo, "--startup-timeout=1", ECHO_MODE="slow-start").ended()
    assert code == 1
    assert "not ready after 1 s (--startup-timeout)" in lines[-1]


def test_a_model_that_loads_but_refuses_to_infer_is_not_ready(replica, echo):
    code, lines = replica("--model-repository", echo, ECHO_MODE="refuses").ended()
    assert code == 1
    assert "the server started, but an inference fails: " in lines[-1]
    assert "ValueError: no vector today" in lines[-1]


def test_a_taken_port_is_named_before_anything_starts(replica, echo):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        code, lines = replica("--model-repository", echo, f"--http-port={port}").ended()
    assert code == 2
    taken = f"port {port} is taken; choose another with --http-port"
    assert lines == [f"tritonembed-manager: --http-port: {taken}"]


def test_two_servers_on_one_host_leave_each_other_alone(replica, echo):
    first, second = replica("--model-repository", echo), replica("--model-repository", echo)
    first.wait_ready()
    second.wait_ready()
    os.kill(first.stubs()[0], signal.SIGKILL)
    assert first.ended()[0] == 1
    assert second.regions()
    assert second.infer(b"still here") == b"still here"


def test_an_unloaded_or_reloaded_model_is_no_dead_stub(replica, echo):
    manager = replica("--model-repository", echo, "--model-control-mode=explicit")
    manager.wait_ready()
    with InferenceServerClient(f"127.0.0.1:{manager.port}") as client:
        client.load_model("embedding")
        assert manager.infer(b"reloaded") == b"reloaded"
        client.unload_model("embedding")
        manager.until(lambda: not manager.stubs(), limit=60)
        client.load_model("embedding")
    assert manager.infer(b"back") == b"back"
    assert manager.process.poll() is None
    time.sleep(2)  # The manager looks for new stubs twice per second.
    os.kill(manager.stubs()[0], signal.SIGKILL)
    assert manager.ended()[0] == 1


@pytest.fixture
def fake_server(tmp_path):
    """Writes a program in place of tritonserver, for faults that the real tritonserver does not show on request."""

    def write(script):
        path = tmp_path / "fake" / "bin" / "tritonserver"
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/bash\n" + textwrap.dedent(script))
        path.chmod(0o755)
        return path

    return write


def test_a_server_that_exits_at_once_is_one_line(replica, echo, fake_server):
    path = fake_server("echo 'unknown option --weird'; exit 3")
    code, lines = replica("--model-repository", echo, "--tritonserver", path).ended()
    assert code == 1
    assert "tritonserver did not start (exit code 3): unknown option --weird" in lines[-1]


def test_a_server_that_never_answers_is_killed_with_its_children(replica, echo, fake_server):
    path = fake_server("trap '' TERM; setsid sleep 600 & while true; do sleep 0.1; done")
    code, lines = replica("--model-repository", echo, "--tritonserver", path, "--startup-timeout=1").ended(limit=60)
    assert code == 1
    assert "it does not listen yet" in lines[-1]


def test_a_second_signal_does_not_wait_for_requests_in_flight(replica, echo):
    manager = replica("--model-repository", echo, "--drain-timeout=600")
    manager.wait_ready()
    # The stopped server can't react to SIGTERM, as if it hung.
    [server] = [process.pid for process in manager.family() if process.name == "tritonserver"]
    os.kill(server, signal.SIGSTOP)
    manager.process.send_signal(signal.SIGTERM)
    while "finishing requests in flight" not in manager.process.stderr.readline():
        pass
    manager.process.send_signal(signal.SIGINT)
    code, lines = manager.ended(limit=60)
    assert code == 1
    assert "SIGINT while stopping: killed" in lines[-1]


def without_tokenizer(bert, folder):
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "special_tokens*"))


def of_another_kind(bert, folder):
    shutil.copytree(bert, folder)
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"], "image_size": 224}')


def empty(_, folder):
    folder.mkdir()


def missing(_, folder):
    assert not folder.exists()


@pytest.mark.parametrize("damage", [without_tokenizer, of_another_kind, empty, missing])
def test_a_folder_that_is_no_embedding_model_stops_start_up_with_one_line(replica, model, tmp_path, damage):
    damage(model, tmp_path / "model")
    code, lines = replica("--model", tmp_path / "model", "--device=cpu").ended()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("tritonembed-manager: --model: ")
    assert "Traceback" not in lines[0]


def test_a_stub_that_is_lost_while_its_server_starts_ends_the_start_within_seconds(replica, echo):
    """The stub is killed, as by the OOM killer, or stopped. Triton alone would wait for the whole start limit."""
    cases = {
        signal.SIGKILL: r"a python process of the model 'embedding' died \(pid \d+\): the server is stopped$",
        signal.SIGSTOP: r"the python process of the model 'embedding' is stopped \(SIGSTOP, pid \d+\)",
    }
    managers = {number: replica("--model-repository", echo, ECHO_MODE="slow-start") for number in cases}
    for number, manager in managers.items():
        stubs = manager.until(lambda manager=manager: len(found := manager.stubs()) == 2 and found)
        time.sleep(2)  # By then, the manager has noticed the stub.
        os.kill(stubs[0], number)
    for number, manager in managers.items():
        code, lines = manager.ended(limit=START_LIMIT_S / 2)
        assert code == 1
        assert re.search(cases[number], lines[-1])


def test_a_model_that_breaks_after_rendering_is_reported_by_the_server_in_one_line(replica, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    render(tmp_path / "repository", RenderSettings(model=str(folder), tokenizer_instances=1))
    shutil.rmtree(folder)
    code, lines = replica("--model-repository", tmp_path / "repository").ended(limit=START_LIMIT_S)
    assert code == 2
    # On a slow start, the log also has "still starting".
    assert len([line for line in lines if "still starting" not in line]) == 2
    assert lines[-1].startswith("tritonembed-manager: ")
    assert "model folder" in lines[-1]
