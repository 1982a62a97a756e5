"""Damaged files, full disks, closed streams: one line, an exit code, and no file left behind."""

import os
import subprocess
import sys

import grpc
import pytest
from tests.unit.client.test_command import needs_arrow, pyarrow

from tritonembed.cli import app

COMMAND = [sys.executable, "-c", "from tritonembed.cli import main; main()"]


@pytest.fixture
def command(server, capfd, tmp_path, monkeypatch):
    """Runs the command in an empty folder against the fake server. Returns its exit code and its one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.run(["--port", str(server.port), "--host", "127.0.0.1", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("tritonembed: ")
        assert err.count("\n") == 1
        return caught.value.code, err

    return call


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.csv", b"id,text\r1,a\r2,b\r", "line 1: not CSV: new-line character"),
        ("in.csv", b"id,text\n1,a\rb\n", "line 2: not CSV: new-line character"),
        ("in.jsonl", b"[" * 200_000, "line 1: not JSON"),
    ],
)
def test_a_file_of_another_form_is_named_with_the_line(command, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    code, err = command("embed", "-i", name, "-o", "out.npy")
    assert code == 1
    assert f"{name}: {words}" in err
    assert os.listdir() == [name]


@needs_arrow
@pytest.mark.parametrize("damage", ["bytes", "encoding"])
def test_a_damaged_parquet_file_is_named_and_leaves_no_output(command, tmp_path, damage):
    path = tmp_path / "in.parquet"
    texts = pyarrow.array([str(number) for number in range(5000)])
    if damage == "encoding":
        offsets = pyarrow.array([0, 1, 3], pyarrow.int32()).buffers()[1]
        texts = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"1\xff\xfe"))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none", use_dictionary=False)
    if damage == "bytes":
        content = bytearray(path.read_bytes())
        content[4:2000] = b"\xff" * 1996
        path.write_bytes(content)
    code, err = command("embed", "-i", path.name, "-o", "out.npy")
    assert code == 1
    assert "in.parquet: after row 0: damaged, or not UTF-8" in err
    assert os.listdir() == [path.name]


def test_an_output_that_is_a_folder_is_refused_before_any_work(command, server, tmp_path):
    (tmp_path / "out.npy").mkdir()
    assert command("embed", "1", "-o", "out.npy") == (2, "tritonembed: out.npy: Is a directory\n")
    assert server.requests == []
    assert os.listdir() == ["out.npy"]


def test_an_output_that_leads_to_a_pipe_or_device_is_refused_and_kept(command, server, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out.npy").symlink_to("pipe")
    assert command("embed", "1", "-o", "out.npy") == (2, "tritonembed: out.npy: Not a regular file\n")
    assert server.requests == []
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir()) == ["out.npy", "pipe"]


@pytest.mark.parametrize("arguments", [["embed", "1"], ["health"], ["info"]])
def test_an_endless_timeout_is_bad_usage(command, server, arguments):
    code, err = command(*arguments, "--timeout", "inf")
    assert code == 2
    assert "--timeout must be a finite number" in err
    assert server.requests == []


def test_a_message_of_many_lines_is_one_line(command, server):
    server.infer = lambda _request, context: context.abort(grpc.StatusCode.INTERNAL, "first\nsecond")
    assert command("embed", "1") == (1, "tritonembed: ServerError: first second\n")
    assert command("embed", "-i", "a\nb.txt") == (2, "tritonembed: a b.txt: No such file or directory\n")


def test_an_unexpected_error_is_one_line_too(command, monkeypatch):
    def broken(*_arguments):
        raise LookupError("no idea")

    monkeypatch.setattr("tritonembed.cli.sources.open_source", broken)
    assert command("embed", "-i", "-") == (1, "tritonembed: unexpected LookupError: no idea\n")


def test_a_full_disk_leaves_nothing(server, tmp_path):
    # The command sets its own limit: a fork of this process, with gRPC's threads, may die before it calls exec.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); " + COMMAND[-1]
    run = subprocess.run(
        [sys.executable, "-c", limited, "--port", str(server.port), "embed", *map(str, range(50)), "-o", "out.npy"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "GRPC_VERBOSITY": "NONE"},
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "tritonembed: out.npy: File too large"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ('"$@" embed -i - <&-', 2, "standard input is closed"),
        ('"$@" embed 1 >&-', 2, "standard output is closed"),
        ('"$@" embed 1 >/dev/full', 1, "No space left on device"),
        ('"$@" info >/dev/full', 1, "No space left on device"),
        ('"$@" health >/dev/full', 1, "No space left on device"),
    ],
)
def test_a_closed_or_full_stream_is_one_line(server, shell, code, words):
    arguments = ["sh", "-c", shell, "sh", *COMMAND, "--port", str(server.port)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (code, f"tritonembed: {words}\n")


@pytest.mark.parametrize(("port", "code"), [("server", 0), ("nobody", 1)])
def test_a_closed_standard_error_changes_neither_exit_code_nor_output(server, tmp_path, port, code):
    if port == "nobody":
        server.close()
    arguments = ["sh", "-c", '"$@" embed 1 -o out.jsonl 2>&-', "sh", *COMMAND, "--port", str(server.port)]
    run = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (code, "")
    assert os.listdir(tmp_path) == ([] if code else ["out.jsonl"])
