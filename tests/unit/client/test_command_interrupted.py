"""The command as a process of its own, ended by signals in the middle of its work."""

import signal
import subprocess
import sys
import time

import pytest
from tests.unit.client.fake_server import Gate, elements
from tests.unit.client.test_command import needs_arrow

COMMAND = [sys.executable, "-c", "from tritonembed.cli import main; main()"]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("suffix", ["npy", "jsonl", pytest.param("parquet", marks=needs_arrow)])
def test_an_interrupted_run_leaves_no_half_written_file(server, tmp_path, number, code, suffix):
    # The first requests are answered, so that rows are written. The later requests never are.
    server.infer = gate = Gate(hold=lambda request: int(elements(request)[0]) >= 50)
    (tmp_path / "in.txt").write_text("".join(f"{number}\n" for number in range(1000)))
    output = tmp_path / f"out.{suffix}"
    output.write_bytes(b"old")
    process = subprocess.Popen(
        [
            *COMMAND,
            "--port",
            str(server.port),
            "embed",
            "-f",
            tmp_path / "in.txt",
            "-o",
            output,
            "--force",
            "--batch-size",
            "10",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        gate.wait_inside(1)
        until(lambda: len(list(tmp_path.iterdir())) == 3)  # The input, the old output and the unfinished output.
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert (out, err) == ("", "")
    assert output.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.txt", output.name]
    gate.wait_ended(1)  # The server's requests were cancelled too.


def test_rows_are_streamed_as_they_come(server):
    server.infer = gate = Gate(hold=lambda request: int(elements(request)[0]) > 0)
    process = subprocess.Popen(
        [*COMMAND, "--port", str(server.port), "embed", "0", "1", "--stream", "--batch-size", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert '"index": 0' in process.stdout.readline()  # while the second request is held
        gate.open()
        assert '"index": 1' in process.stdout.readline()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_reader_that_goes_away_ends_the_command_quietly(server):
    texts = [str(number) for number in range(2000)]
    process = subprocess.Popen(
        [*COMMAND, "--port", str(server.port), "embed", *texts, "--stream"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
