"""Samples of a real server under the real clients, and of a program in this process. Their answers are checked."""

import os
import sys
from pathlib import Path

import pytest
from tests.unit.perf.fake_peer import PROGRAM, TRIAL, FakeServer, FewTexts

from tritonembed_manager.tune.loadgen.clients import Interrupt
from tritonembed_perf.compare.contest import SampleWindow, take_sample
from tritonembed_perf.compare.launching import CannotRunError
from tritonembed_perf.compare.peer import DEFAULTS, Bench, InProcess, Peer
from tritonembed_perf.compare.results import Sample, Trial
from tritonembed_perf.loadgen.protocols import OpenAIProtocol
from tritonembed_perf.settings import client_processes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "float32", "cpu", 2, tmp_path)


def measure(bench: Bench, peer: Peer, trial: Trial = TRIAL) -> Sample:
    with peer.running(bench, DEFAULTS) as endpoint:
        assert not isinstance(endpoint, InProcess)
        found = take_sample(endpoint, trial, FewTexts(), SampleWindow(0.4, 0.1, 1), Interrupt())
    assert found is not None
    return found


def test_a_server_is_measured_and_its_answers_are_checked(bench: Bench, tmp_path: Path) -> None:
    found = measure(bench, FakeServer(tmp_path / "server.py"))
    assert (found["errors"], found["wrong"]) == ({}, 0)
    assert found["tokens_per_second"] == pytest.approx(10 * found["requests_per_second"])
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["client_cpu_seconds"] > 0


def test_vectors_in_the_wrong_order_are_wrong_answers(bench: Bench, tmp_path: Path) -> None:
    found = measure(bench, FakeServer(tmp_path / "server.py", "out of order"))
    assert found["wrong"] > 0
    assert "cosine" in found["faults"][0]


def test_refused_requests_are_counted_and_explained(bench: Bench, tmp_path: Path) -> None:
    found = measure(bench, FakeServer(tmp_path / "server.py", "refuses"))
    assert found["errors"] == {"HTTP 500": sum(found["errors"].values())}
    assert found["tokens_per_second"] == 0
    assert found["faults"][0].startswith("HTTP 500")


def test_an_offered_rate_is_an_open_loop(bench: Bench, tmp_path: Path) -> None:
    found = measure(bench, FakeServer(tmp_path / "server.py"), Trial(5, 2, rate=50))
    assert (found["errors"], found["wrong"]) == ({}, 0)
    assert found["requests_per_second"] < 150


def test_a_program_in_process_is_timed_by_itself_and_checked_here(tmp_path: Path) -> None:
    found = run_program(tmp_path, "nothing")
    # Two calls per second, of four requests of ten tokens.
    assert (found["tokens_per_second"], found["requests_per_second"]) == (80.0, 8.0)
    assert found["p50_ms"] == pytest.approx(500)
    assert (found["errors"], found["wrong"]) == ({}, 0)


def test_a_programs_wrong_vectors_are_found(tmp_path: Path) -> None:
    assert run_program(tmp_path, "out of order")["wrong"] == 4


def test_a_program_that_fails_is_reported_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="out of memory"):
        run_program(tmp_path, "fails")


def test_a_program_has_no_offered_rate(tmp_path: Path) -> None:
    nothing = InProcess((sys.executable, str(tmp_path / "missing.py")))
    assert take_sample(nothing, Trial(5, 2, rate=1), FewTexts(), SampleWindow(1, 0), Interrupt()) is None


def run_program(folder: Path, fault: str) -> Sample:
    script = folder / "program.py"
    script.write_text(PROGRAM)
    endpoint = InProcess((sys.executable, str(script), fault))
    found = take_sample(endpoint, TRIAL, FewTexts(), SampleWindow(1.0, 0.0), Interrupt())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("cores", "concurrency", "wanted", "expected"),
    [(2, 4, None, 1), (16, 1024, None, 6), (16, 2, None, 2), (128, 1024, None, 8), (2, 4, 3, 3), (16, None, None, 6)],
)
def test_clients_leave_most_cores_to_the_server(
    monkeypatch: pytest.MonkeyPatch, cores: int, concurrency: int | None, wanted: int | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert client_processes(wanted, concurrency) == expected


def test_a_configuration_is_variables_and_flags_behind_the_command(bench: Bench) -> None:
    script = "import os, sys; print(os.environ.get('THREADS'), *sys.argv[1:], file=sys.stderr); sys.exit(1)"
    command = ("{python}", "-c", script, "Error", "{device}", "{model}")
    peer = Peer("echo", command, (), (), lambda address, _: OpenAIProtocol(address, "echo"), variables={"THREADS": "3"})
    for config, said in ((DEFAULTS, "3 Error cpu"), ("THREADS=1 --replicas 2", "1 Error cpu")):
        with pytest.raises(CannotRunError, match=said), peer.running(bench, config):
            pass
        line = (bench.work / "logs" / "echo.log").read_text().split()
        assert line[4:] == ([] if config == DEFAULTS else ["--replicas", "2"])


def test_a_program_gets_the_configuration_too(bench: Bench) -> None:
    peer = Peer("program", ("{python}", "main.py", "--dtype", "{dtype}"), ("--parallel {cores}",), (), None)
    [config] = peer.configs(bench)
    with peer.running(bench, config) as endpoint:
        assert endpoint == InProcess((sys.executable, "main.py", "--dtype", "float32", "--parallel", "2"))
