"""`tritonembed-manager replica` on real tritonservers: ready when it infers, and nothing left when it ends.

Most of it needs no model that embeds: a python model that echoes its text under the name `embedding` starts at once.
"""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tritonembed_manager.processes import family, process_table
from tritonembed_manager.repository import render
from tritonembed_manager.settings import RenderSettings
from tritonembed_manager.tritonserver import STUB
from tritonembed_perf.models import write_bert
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
            time.sleep(1.5)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("embedding", text)]) for text in texts]
"""


@pytest.fixture
def echo(tmp_path):
    """A repository whose `embedding` gives back its text."""
    folder = tmp_path / "repository" / "embedding"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ECHO_CONFIG)
    (folder / "1" / "model.py").write_text(ECHO_MODEL)
    return tmp_path / "repository"


class Manager:
    """`tritonembed-manager replica` as a process, and what it started."""

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
        """Everything that lives of it, also what has lost its parent since the last call."""
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
        return [process.pid for process in self.family() if process.name == STUB[:15]]

    def regions(self):
        """Those of this server, by its manager's pid, which their names hold."""
        mine = f"tritonembed_{self.process.pid}_"
        return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(mine)]

    def ended(self, limit=30):
        """Exit code and stderr, once it has ended; nothing of it may be left then."""
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
    """Starts managers; ends whatever a failed test left of them."""
    managers = []

    def start(*arguments, **environment):
        # A manager that is killed can't remove its temporary folder.
        managers.append(Manager(*arguments, **{"TMPDIR": str(tmp_path), **environment}))
        return managers[-1]

    yield start
    for manager in managers:
        for process in manager.family():
            os.kill(process.pid, signal.SIGKILL)
        manager.process.communicate(timeout=10)
        for region in manager.regions():
            region.unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_exit_code_0_and_nothing_is_left(replica, echo, number):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    assert len(manager.stubs()) == 2
    assert manager.regions()
    manager.process.send_signal(number)
    code, lines = manager.ended()
    assert code == 0
    assert any(number.name in line for line in lines)


def test_what_is_in_flight_is_answered_before_it_ends(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    tensor = InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"slow"]], dtype=object))
    answers = []
    with InferenceServerClient(f"127.0.0.1:{manager.port}") as client:
        client.async_infer("embedding", [tensor], lambda result, error: answers.append((result, error)))
        time.sleep(0.3)  # The request has to be inside the model; nothing tells when it is.
        manager.process.send_signal(signal.SIGTERM)
        assert manager.ended()[0] == 0
        manager.until(lambda: answers, limit=5)
    [(result, error)] = answers
    assert error is None
    assert result.as_numpy("embedding")[0, 0] == b"slow"


def test_a_manager_that_is_killed_takes_its_server_along(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    manager.family()
    manager.process.kill()
    manager.process.wait()
    manager.until(lambda: not manager.family(), limit=20)
    manager.until(lambda: not manager.regions(), limit=5)


def test_a_dead_stub_ends_the_server_within_two_seconds(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    victim = manager.stubs()[0]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    code, lines = manager.ended(limit=10)
    assert time.monotonic() - began < 2
    assert code == 1
    assert lines[-1].endswith(f"a python process of the model 'embedding' died (pid {victim}): the server is stopped")


def test_children_of_a_stub_end_too_also_those_in_a_session_of_their_own(replica, echo):
    manager = replica("--model-repository", echo, ECHO_MODE="with-child")
    manager.wait_ready()
    assert [process.name for process in manager.family()].count("sleep") == 2
    os.kill(manager.stubs()[0], signal.SIGKILL)
    assert manager.ended()[0] == 1


def test_a_server_that_is_killed_is_reported_and_cleaned_up_after(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    [server] = [process.pid for process in manager.family() if process.name == "tritonserver"]
    os.kill(server, signal.SIGKILL)
    code, lines = manager.ended()
    assert code == 1
    assert any("signal 9" in line or "died" in line for line in lines)


def test_a_signal_while_starting_ends_it_at_once(replica, echo):
    manager = replica("--model-repository", echo, ECHO_MODE="slow-start")
    manager.until(manager.stubs)
    manager.process.send_signal(signal.SIGTERM)
    code, lines = manager.ended(limit=5)
    assert code == 0
    assert "start abandoned" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_vllms_parser_runs_ends_it_at_once_with_the_same_exit_code(replica, number):
    manager = replica("--model", "a/model", "--device=cpu", "--seed=1")
    manager.until(lambda: len(manager.family()) > 1)
    manager.process.send_signal(number)
    assert manager.ended(limit=5) == (0, [f"tritonembed-manager: {number.name}: start abandoned"])


def test_a_render_that_a_signal_ends_is_a_failure(tmp_path):
    command = [sys.executable, "-m", "tritonembed_manager", "render", str(tmp_path / "out")]
    rendering = subprocess.Popen(
        [*command, "--model=a/model", "--device=cpu", "--seed=1"], stderr=subprocess.PIPE, text=True
    )
    while len(family(rendering.pid, process_table())) < 2:
        time.sleep(0.02)
    rendering.terminate()
    _, stderr = rendering.communicate(timeout=5)
    assert (rendering.returncode, stderr) == (143, "tritonembed-manager: SIGTERM: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_says_why_it_cannot_start_is_quoted_in_one_line(replica, echo):
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
    first = replica("--model-repository", echo)
    first.wait_ready()
    second = replica("--model-repository", echo, f"--http-port={first.port}")
    code, lines = second.ended()
    assert code == 2
    assert lines == [f"tritonembed-manager: --http-port: port {first.port} is taken; choose another with --http-port"]


def test_two_servers_on_one_host_leave_each_other_alone(replica, echo):
    first, second = replica("--model-repository", echo), replica("--model-repository", echo)
    first.wait_ready()
    second.wait_ready()
    os.kill(first.stubs()[0], signal.SIGKILL)
    assert first.ended()[0] == 1
    assert second.regions()
    assert second.infer(b"still here") == b"still here"


def test_a_model_that_is_unloaded_or_reloaded_is_no_dead_stub(replica, echo):
    manager = replica("--model-repository", echo, "--model-control-mode=explicit")
    manager.wait_ready()
    with InferenceServerClient(f"127.0.0.1:{manager.port}") as client:
        client.load_model("embedding")
        assert manager.infer(b"reloaded") == b"reloaded"
        client.unload_model("embedding")
        manager.until(lambda: not manager.stubs(), limit=20)
        client.load_model("embedding")
    assert manager.infer(b"back") == b"back"
    assert manager.process.poll() is None
    time.sleep(1)  # The new stubs are looked for twice a second.
    os.kill(manager.stubs()[0], signal.SIGKILL)
    assert manager.ended()[0] == 1


@pytest.fixture
def fake_server(tmp_path):
    """A program in the place of tritonserver, for faults that the real one does not show on request."""

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


def test_a_server_that_never_answers_is_killed_with_all_it_started(replica, echo, fake_server):
    path = fake_server("trap '' TERM; setsid sleep 600 & while true; do sleep 0.1; done")
    code, lines = replica("--model-repository", echo, "--tritonserver", path, "--startup-timeout=1").ended(limit=10)
    assert code == 1
    assert "it does not listen yet" in lines[-1]


def test_a_second_signal_does_not_wait_for_what_is_in_flight(replica, echo):
    manager = replica("--model-repository", echo)
    manager.wait_ready()
    # Stopped, the server can't react to SIGTERM: as if it hung.
    [server] = [process.pid for process in manager.family() if process.name == "tritonserver"]
    os.kill(server, signal.SIGSTOP)
    manager.process.send_signal(signal.SIGTERM)
    while "finishing what is in flight" not in manager.process.stderr.readline():
        pass
    began = time.monotonic()
    manager.process.send_signal(signal.SIGINT)
    code, lines = manager.ended(limit=10)
    assert code == 1
    assert time.monotonic() - began < 2
    assert "SIGINT while stopping: killed" in lines[-1]


def test_a_server_that_does_not_drain_in_time_is_killed(replica, echo):
    manager = replica("--model-repository", echo, "--drain-timeout=1")
    manager.wait_ready()
    [server] = [process.pid for process in manager.family() if process.name == "tritonserver"]
    os.kill(server, signal.SIGSTOP)
    manager.process.send_signal(signal.SIGTERM)
    code, lines = manager.ended(limit=20)
    assert code == 1
    assert "did not stop within 1 s" in lines[-1]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT with random weights."""
    return write_bert(
        tmp_path_factory.mktemp("models") / "bert", layers=2, hidden=64, heads=2, intermediate=128, max_length=128
    )


def vector_of(answer):
    return np.frombuffer(answer, "<f4")


def test_a_real_model_is_served_and_nothing_is_left_of_it(replica, bert, tmp_path):
    manager = replica(
        "--model", bert, "--device=cpu", "--workers=1", "--work-dir", tmp_path / "work", "--dtype=float32"
    )
    manager.wait_ready()
    vector = vector_of(manager.infer(b"a sentence"))
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert len(manager.stubs()) == 2
    manager.process.send_signal(signal.SIGTERM)
    code, lines = manager.ended(limit=60)
    assert code == 0
    assert [line for line in lines if not line.startswith("tritonembed")] == []


def test_a_dead_embedder_ends_the_server_within_two_seconds(replica, bert):
    # The variable names another model: what the command line says wins.
    manager = replica("--model", bert, "--device=cpu", "--workers=1", TRITONEMBED_MODEL="/no/such/model")
    manager.wait_ready()
    [embedder] = [pid for pid in manager.stubs() if "/embedder/" in Path(f"/proc/{pid}/cmdline").read_text()]
    began = time.monotonic()
    os.kill(embedder, signal.SIGKILL)
    code, lines = manager.ended(limit=10)
    assert time.monotonic() - began < 2
    assert (code, "'embedder' died" in lines[-1]) == (1, True)


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
def test_a_folder_that_is_no_embedding_model_stops_start_up_with_one_line(replica, bert, tmp_path, damage):
    damage(bert, tmp_path / "model")
    code, lines = replica("--model", tmp_path / "model", "--device=cpu").ended()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("tritonembed-manager: --model: ")
    assert "Traceback" not in lines[0]


def test_a_model_that_goes_bad_after_rendering_is_told_in_one_line_by_the_server(replica, bert, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    render(tmp_path / "repository", RenderSettings(model=str(model), tokenizer_instances=1))
    shutil.rmtree(model)
    code, lines = replica("--model-repository", tmp_path / "repository").ended(limit=START_LIMIT_S)
    assert code == 2
    # A busy machine takes long enough for a line that says so.
    assert len([line for line in lines if "still starting" not in line]) == 2
    assert lines[-1].startswith("tritonembed-manager: ")
    assert "model folder" in lines[-1]


def half_the_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(half_the_weights, "incomplete metadata, file not fully covered"), (no_weights, "the model has no weights")],
)
def test_weights_that_cannot_be_loaded_are_told_in_one_line_without_paths(replica, bert, tmp_path, damage, reason):
    model = tmp_path / "my model"
    shutil.copytree(bert, model)
    damage(model)
    code, lines = replica("--model", model, "--device=cpu", "--workers=1").ended(limit=START_LIMIT_S)
    assert code == 2
    assert lines[-1].startswith("tritonembed-manager: my model: ")
    assert reason in lines[-1]
    assert str(tmp_path) not in lines[-1]


def test_a_length_that_the_model_does_not_take_stops_start_up_before_triton(replica, bert):
    code, lines = replica("--model", bert, "--device=cpu", "--max-model-len=100k").ended(limit=60)
    assert code == 2
    assert lines == ["tritonembed-manager: --max-model-len: 100000 tokens, but bert takes at most 128"]


def test_a_misspelt_argument_stops_start_up_with_its_name(replica, bert):
    code, lines = replica("--model", bert, "--device=cpu", "--max-model-length=512").ended(limit=60)
    assert code == 2
    assert lines == ["tritonembed-manager: unknown option --max-model-length; did you mean --max-model-len?"]
