import csv
import io
import json
import subprocess
import sys

import grpc
import numpy as np
import pytest
from tests.unit.client.fake_server import DIMENSIONS, elements, embed, parameters

from tritonembed.cli.app import run

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:  # missing, or refusing the installed numpy
    pyarrow, WHY = None, str(error)
else:
    WHY = ""

needs_arrow = pytest.mark.skipif(pyarrow is None, reason=WHY)


def parquet(name):
    return pytest.param(name, marks=needs_arrow)


@pytest.fixture
def command(server, capfdbinary, monkeypatch):
    """Runs the command against the fake server. Returns its exit code, standard output and standard error."""

    def call(*arguments, stdin=b"", port=server.port):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            run(["--port", str(port), "--host", "127.0.0.1", *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return caught.value.code, out.decode(), err.decode()

    return call


def numbers(count):
    return [str(number) for number in range(count)]


def write_input(path, texts):
    """Writes the texts in the format of the file's ending. Returns the options that read them."""
    if path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *((1, text) for text in texts)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": texts}), path)
    return path


def read_output(path):
    """The embeddings and token counts (None if the format has none) of an output file."""
    if path.suffix == ".npy":
        return np.load(path), None
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["index"] for row in rows] == list(range(len(rows)))
        return np.array([row["embedding"] for row in rows]), [row["num_tokens"] for row in rows]
    table = pyarrow.parquet.read_table(path)
    return np.array(table["embedding"].to_pylist()), table["num_tokens"].to_pylist()


def test_arguments_and_prompts_are_embedded_in_order(command, server):
    code, out, err = command("embed", "1", "22", "--prompt", "333", "--prompt", "4")
    assert (code, err) == (0, "")
    assert elements(server.requests[0]) == [b"1", b"22", b"333", b"4"]
    assert out.splitlines()[2] == "2  3 tokens  float32[10] (+333.0000, +333.0000, +333.0000, +333.0000, …)"


@pytest.mark.parametrize("source", ["in.txt", "in.jsonl", "in.csv", parquet("in.parquet")])
@pytest.mark.parametrize("target", ["out.npy", "out.jsonl", parquet("out.parquet")])
def test_every_input_file_becomes_every_output_file(command, tmp_path, source, target):
    texts = numbers(150)
    path = write_input(tmp_path / source, texts)
    code, out, err = command("embed", "-f", path, "-o", tmp_path / target)
    assert (code, out) == (0, "")
    assert err.startswith("tritonembed: 150 texts, 340 tokens in ")
    embeddings, num_tokens = read_output(tmp_path / target)
    assert embeddings.shape == (150, DIMENSIONS)
    assert embeddings[:, 3].tolist() == list(range(150))
    assert num_tokens in (None, [len(text) for text in texts])
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source, target])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float", "<f4"), ("float16", "<f2"), ("int8", "i1"), ("uint8", "u1"), ("binary", "i1"), ("ubinary", "u1")],
)
@pytest.mark.parametrize("suffix", ["npy", "jsonl", parquet("parquet")])
def test_every_embedding_type_can_be_written(command, tmp_path, kind, dtype, suffix):
    path = tmp_path / f"out.{suffix}"
    assert command("embed", "7", "--embedding-type", kind, "-o", path)[0] == 0
    embeddings, _ = read_output(path)
    assert embeddings[:, 0].tolist() == [7]
    if suffix == "npy":
        assert embeddings.dtype == np.dtype(dtype)


@pytest.mark.parametrize("target", ["out.npy", parquet("out.parquet")])
def test_an_empty_file_becomes_an_empty_array_of_the_right_width(command, tmp_path, target):
    path = write_input(tmp_path / "in.txt", [])
    assert command("embed", "-f", path, "-o", tmp_path / target)[0] == 0
    if target == "out.npy":
        assert np.load(tmp_path / target).shape == (0, DIMENSIONS)
    else:
        table = pyarrow.parquet.read_table(tmp_path / target)
        assert (table.num_rows, table.schema.field("embedding").type.list_size) == (0, DIMENSIONS)


def test_the_npy_header_leaves_room_for_any_number_of_rows(tmp_path):
    from tritonembed._results import EmbeddingResult
    from tritonembed.cli.sinks import NpySink

    with (tmp_path / "a.npy").open("w+b") as file:
        sink = NpySink(file)
        sink.write(EmbeddingResult(np.ones((3, 2), np.float32), np.ones(3, np.int32)))
        sink._rows = 10**15
        before = file.tell()
        sink.finish(lambda: None)
        assert file.tell() == before  # nothing was overwritten or moved
        file.seek(0)
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file)[0] == (10**15, 2)
        assert np.frombuffer(file.read(), "<f4").tolist() == [1.0] * 6


def test_lines_of_standard_input_are_texts_and_empty_lines_count(command, server):
    code, _, _ = command("embed", "-f", "-", stdin=b"\xef\xbb\xbf1\r\n\n\xc3\xa9\xe2\x80\xa8x")
    assert code == 0
    assert elements(server.requests[0]) == [b"1", b"", "é\u2028x".encode()]


def test_stream_writes_json_lines(command):
    code, out, _ = command("embed", "1", "2", "3", "--stream", "--batch-size", "2")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["index"], row["num_tokens"], row["embedding"]) for row in rows] == [
        (0, 1, [1] * DIMENSIONS),
        (1, 1, [2] * DIMENSIONS),
        (2, 1, [3] * DIMENSIONS),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_in_json_lines_read_back_exactly(dtype):
    from tritonembed._results import EmbeddingResult
    from tritonembed.cli.sinks import JsonLinesSink

    bits = np.random.default_rng(1).integers(0, 2 ** (8 * dtype().itemsize), (50, 8), dtype=np.uint32)
    vectors = bits.astype(f"u{dtype().itemsize}").view(dtype)
    file = io.BytesIO()
    JsonLinesSink(file).write(EmbeddingResult(vectors, np.ones(50, np.int32)))
    read = np.array([json.loads(line)["embedding"] for line in file.getvalue().splitlines()]).astype(dtype)
    assert np.array_equal(read, vectors, equal_nan=True)


def test_request_parameters_are_options(command, server):
    options = ["--input-type", "query", "--truncate", "NONE", "--dimensions", "3", "--no-normalize", "--timeout", "9"]
    assert command("embed", "1", *options)[0] == 0
    sent = parameters(server.requests[0])
    assert sent.pop("timeout") <= 9e6
    assert sent == {"input_type": "query", "truncate": "NONE", "dimensions": 3, "normalize": False}


def test_chunks_are_options(command, server):
    options = ["--truncate", "CHUNK", "--chunk-tokens", "32", "--chunk-overlap", "4"]
    assert command("embed", "1", *options)[0] == 0
    assert parameters(server.requests[0]) == {"truncate": "CHUNK", "chunk_tokens": 32, "chunk_overlap": 4}


def test_a_prompt_is_an_option(command, server):
    assert command("embed", "1", "--prompt-name", "query")[0] == 0
    assert command("embed", "1", "--prompt", "2", "--prompt-text", "find: ")[0] == 0
    assert command("embed", "1", "--instruction", "find cats")[0] == 0
    expected = [{"prompt_name": "query"}, {"prompt": "find: "}, {"instruction": "find cats"}]
    assert [parameters(request) for request in server.requests] == expected
    assert elements(server.requests[1]) == [b"1", b"2"]


def test_an_adapter_is_an_option(command, server, monkeypatch):
    assert command("embed", "1", "--adapter", "law")[0] == 0
    monkeypatch.setenv("TRITONEMBED_CLIENT_ADAPTER", "med")
    assert command("embed", "1")[0] == 0
    assert [parameters(request) for request in server.requests] == [{"adapter": "law"}, {"adapter": "med"}]


def test_connection_options_may_stand_before_or_after_the_command_and_the_later_wins(command, server):
    code, _, _ = command("--model", "a", "--metadata", "token=1=2", "embed", "1", "--model", "b", port=server.port)
    assert code == 0
    assert server.requests[0].model_name == "b"
    assert server.metadata[0]["token"] == "1=2"
    assert command("embed", "1", "--port", server.port, port=1)[0] == 0


def test_texts_are_spread_over_several_servers(command, two):
    servers = ["--server", two[0].target, "--server", two[1].target]
    code, out, _ = command("embed", *numbers(9), *servers, "--batch-size", "1", "--stream", port=1)
    assert code == 0
    assert [json.loads(line)["embedding"][0] for line in out.splitlines()] == list(range(9))
    assert all(fake.requests for fake in two)


def test_sampling_options_are_refused_with_one_line(command):
    code, out, err = command("embed", "1", *["--temperature", "0", "--top-p", "1", "--top-k", "3", "--max-tokens", "5"])
    assert code == 0
    assert out.startswith("0  1 token ")
    assert err.count("\n") == 1
    assert "no sampling" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed"], "no texts"),
        (["embed", "1", "-f", "in.txt"], "choose one"),
        (["embed", "-f", "in.doc"], ".txt, .jsonl, .csv, .parquet"),
        (["embed", "-f", "nowhere.txt"], "nowhere.txt: No such file"),
        pytest.param(["embed", "-f", "nowhere.parquet"], "nowhere.parquet: No such file", marks=needs_arrow),
        (["embed", "1", "-o", "out.csv"], ".npy, .jsonl or .parquet"),
        (["embed", "1", "-o", "nowhere/out.npy"], "nowhere/out.npy: No such file"),
        (["embed", "1", "--stream", "-o", "out.npy"], "--stream"),
        (["embed", "1", "--batch-size", "1025"], "1024"),
        (["embed", "1", "--truncate", "MIDDLE"], "MIDDLE"),
        (["embed", "1", "--wrong"], "--wrong"),
        (["embed", "1", "--tls-root-certificates", "x"], "--tls"),
        (["embed", "1", "--tls", "--tls-root-certificates", "nowhere.pem"], "nowhere.pem"),
        (["embed", "1", "--metadata", "secret"], "KEY=VALUE"),
        (["embed", "1", "--metadata", "grpc-x=1"], "grpc-x"),
        (["embed", "1", "--priority", "1"], "interactive"),
        (["embed", "1", "--policy", "first"], "round_robin"),
        (["embed", "1", "--server", "host1"], "--server must be HOST:PORT"),
        (["embed", "1", "--server", "127.0.0.1:65537"], "--server must be HOST:PORT"),
        (["embed", "1", "--server", "grpcs://a"], "--server must be HOST:PORT"),
        (["embed", "1", "--server", "a:1", "--server", "grpcs://b:1"], "all servers or none"),
        (["embed", "1", "--server", "grpcs://b:1", "--tls-root-certificates", "nowhere.pem"], "nowhere.pem"),
        (["embed", "1", "--server", "a:1", "--server", "a:1"], "twice"),
        (["wrong"], "wrong"),
        ([], "command"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(command, server, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tritonembed: ")
    assert err.count("\n") == 1
    assert words in err
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.txt", b"fine\n\xff\xfe\n", "line 2: not UTF-8"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("in.jsonl", b'{"text": "a"}\n\n[1]\n', "line 3: no string 'text'"),
        ("in.jsonl", b'{"text": 5}\n', "line 1: no string 'text'"),
        ("in.csv", b"id,text\n1,a\n2\n", "line 3: no column 'text'"),
        ("in.csv", b'id,text\n1,"a\n2,b\n', "line 3: not CSV: unexpected end of data"),
        ("in.jsonl", b'{"text": "\\ud800"}\n', "text[0]: a lone surrogate"),
    ],
)
def test_a_bad_row_is_named_and_leaves_no_output(command, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = command("embed", "-f", path, "-o", tmp_path / "out.npy", "--batch-size", "1")
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_csv_file_that_lacks_the_column_is_bad_usage(command, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"id,title\n1,a\n")
    code, out, err = command("embed", "-f", tmp_path / "in.csv", "-o", tmp_path / "out.npy")
    assert (code, out) == (2, "")
    assert "line 1: no column 'text' in the header" in err
    assert [file.name for file in tmp_path.iterdir()] == ["in.csv"]


@needs_arrow
def test_a_parquet_file_that_is_not_parquet_or_lacks_the_column_is_bad_usage(command, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    assert command("embed", "-f", tmp_path / "a.parquet")[0] == 2
    path = write_input(tmp_path / "b.parquet", ["1"])
    code, _, err = command("embed", "-f", path, "--column", "title")
    assert code == 2
    assert "no column 'title'" in err


def test_csv_fields_may_hold_line_breaks_and_another_column_may_be_chosen(command, server, tmp_path):
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbftitle,text\n"two\nlines",x\n"a,b",y\n')
    assert command("embed", "-f", tmp_path / "in.csv", "--column", "title")[0] == 0
    assert elements(server.requests[0]) == [b"two\nlines", b"a,b"]


def test_a_failure_of_the_server_is_one_line_exit_code_1_and_keeps_the_old_output(command, server, tmp_path):
    def infer(request, context):
        if b"100" in elements(request):
            context.abort(grpc.StatusCode.INTERNAL, "it broke")
        return embed(request)

    server.infer = infer
    path = write_input(tmp_path / "in.txt", numbers(200))
    (tmp_path / "out.npy").write_bytes(b"old")
    code, out, err = command("embed", "-f", path, "-o", tmp_path / "out.npy", "--batch-size", "10", "--force")
    assert (code, out, err) == (1, "", "tritonembed: ServerError: it broke\n")
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.txt", "out.npy"]


def test_a_progress_bar_is_drawn_on_request(command, tmp_path):
    path = write_input(tmp_path / "in.txt", numbers(100))
    code, _, err = command("embed", "-f", path, "-o", tmp_path / "out.npy", "--progress")
    assert code == 0
    assert "100 texts" in err
    assert "100%" in err
    assert "texts/s" in err
    assert "%" not in command("embed", "-f", path, "-o", tmp_path / "out.npy", "--force")[2]


@pytest.mark.parametrize("target", ["out.npy", "out.jsonl", "link.npy"])
def test_an_output_that_exists_is_kept_without_force(command, server, tmp_path, target):
    (tmp_path / "out.npy").write_bytes(b"old")
    (tmp_path / "out.jsonl").write_bytes(b"old")
    (tmp_path / "link.npy").symlink_to("out.npy")
    path = tmp_path / target
    assert command("embed", "1", "-o", path) == (2, "", f"tritonembed: {path} exists already: --force replaces it\n")
    assert path.read_bytes() == b"old"
    assert server.requests == []
    assert command("embed", "1", "-o", path, "--force")[0] == 0
    assert len(read_output(path)[0]) == 1


def test_health_is_the_exit_code(command, server):
    code, out, _ = command("health")
    assert code == 0
    assert "is ready" in out
    server.close()
    code, out, err = command("health")
    assert (code, out) == (1, "")
    assert "is not ready: UnavailableError" in err


def test_info_shows_server_and_models(command):
    code, out, _ = command("info")
    assert code == 0
    assert "triton 2.51.0" in out
    assert "dimensions  10" in out
    assert "text BYTES [-1,1] -> embedding BYTES [-1,1]" in out
    assert json.loads(command("info", "--json")[1])["models"][1]["parameters"] == {"dimensions": "7"}


@pytest.mark.parametrize("missing", ["typer", "rich", "pyarrow"])
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(missing, tmp_path):
    script = f"import sys; sys.modules[{missing!r}] = None; from tritonembed.cli import main; main()"
    arguments = ["embed", "-f", str(tmp_path / "in.parquet")]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "pip install 'tritonembed[cli]'" in run.stderr


@pytest.mark.parametrize("option", ["-f", "-o"])
def test_a_pyarrow_that_cannot_be_imported_is_one_line(tmp_path, option):
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text("raise ImportError('pyarrow requires another NumPy')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tritonembed.cli import main; main()"
    texts = ["text"] if option == "-o" else []
    arguments = ["embed", *texts, option, str(tmp_path / "a.parquet")]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert run.stderr.endswith("pyarrow requires another NumPy\n")
    assert [file.name for file in tmp_path.iterdir()] == ["pyarrow"]


def test_pyarrow_is_imported_for_parquet_alone(server):
    script = "import sys; from tritonembed.cli import app\ntry: app.run()\nfinally: print('pyarrow' in sys.modules)"
    arguments = ["--port", str(server.port), "embed", "1"]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
