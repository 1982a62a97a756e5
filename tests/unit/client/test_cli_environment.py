"""The connection of the command, from environment variables."""

from unittest.mock import Mock

import pytest
from tests.unit.client.fake_server import elements, parameters

from tritonembed import EmbeddingClient
from tritonembed.cli.app import run


@pytest.fixture
def command(capfd):
    """Runs the unchanged command line. Returns its exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(list(map(str, arguments)))
        return caught.value.code, *capfd.readouterr()

    return call


@pytest.fixture
def environment(server, monkeypatch):
    """Sets variables for the fake server. Returns a function that sets more."""

    def give(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"TRITONEMBED_CLIENT_{name}", str(value))

    give(HOST="127.0.0.1", PORT=server.port)
    return give


def test_the_connection_is_taken_from_the_environment(command, server, environment):
    environment(MODEL="a", METADATA="authorization=Bearer x y\nteam=1", TIMEOUT=9, BATCH_SIZE=1)
    assert command("embed", "1", "2")[0] == 0
    assert [request.model_name for request in server.requests] == ["a", "a"]
    assert server.metadata[0]["authorization"] == "Bearer x y"
    assert server.metadata[0]["team"] == "1"
    assert 0 < parameters(server.requests[0])["timeout"] <= 9e6


@pytest.mark.parametrize("arguments", [["--model", "b", "embed", "1"], ["embed", "1", "--model", "b"]])
def test_an_option_wins_over_the_environment_on_either_side(command, server, environment, arguments):
    environment(MODEL="a", METADATA="k=environment")
    assert command(*arguments, *["--metadata", "k=option"])[0] == 0
    assert server.requests[0].model_name == "b"
    assert server.metadata[0]["k"] == "option"


def test_the_variables_of_the_servers_do_not_lead_the_client_astray(command, server, environment, monkeypatch):
    for name, value in {"MODEL": "Snowflake/arctic", "HOST": "0.0.0.0", "PORT": "1"}.items():
        monkeypatch.setenv(f"TRITONEMBED_{name}", value)
    assert command("embed", "1")[0] == 0
    assert server.requests[0].model_name == "embedding"


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"PORT": "x"}, "TRITONEMBED_CLIENT_PORT"), ({"METADATA": "secret"}, "KEY=VALUE"), ({"TLS": "x"}, "'--tls'")],
)
def test_a_bad_variable_is_one_line_and_exit_code_2(command, server, environment, variables, words):
    environment(**variables)
    code, out, err = command("embed", "1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert "secret" not in err
    assert server.requests == []


def test_help_names_the_variables_and_keeps_sampling_options_out_of_the_list(command):
    code, out, _ = command("embed", "--help")
    options, _, rest = out.partition("For scripts of Arctic Inference's client:")
    assert code == 0
    assert "TRITONEMBED_CLIENT_PORT" in options
    assert "--temperature" not in options
    assert "--temperature" in rest
    assert "--lora-name" in rest


def test_request_options_are_taken_from_the_environment(command, server, environment):
    environment(INPUT_TYPE="query", TRUNCATE="NONE", DIMENSIONS=4, EMBEDDING_TYPE="int8", PRIORITY="interactive")
    environment(NORMALIZE="true", PROMPT_NAME="question", PROMPT_TEXT="find: ")
    assert command("embed", "1")[0] == 0
    assert parameters(server.requests[0]) == {
        "input_type": "query",
        "prompt_name": "question",
        "prompt": "find: ",
        "truncate": "NONE",
        "dimensions": 4,
        "embedding_type": "int8",
        "normalize": True,
        "priority": 1,
    }
    assert command("embed", "1", "--priority", "bulk", "--no-normalize", "--dimensions", "2")[0] == 0
    sent = parameters(server.requests[1])
    assert (sent["normalize"], sent["dimensions"], sent.get("priority")) == (False, 2, None)


def test_the_column_and_the_progress_bar_are_taken_from_the_environment(command, server, environment, tmp_path):
    environment(COLUMN="title", PROGRESS=1)
    (tmp_path / "in.csv").write_text("title,text\n7,8\n")
    code, _, err = command("embed", "-i", tmp_path / "in.csv")
    assert (code, "100%" in err) == (0, True)
    assert elements(server.requests[0]) == [b"7"]


def test_several_servers_are_separated_by_blanks(command, two, environment, monkeypatch):
    settings = Mock(side_effect=EmbeddingClient)
    monkeypatch.setattr("tritonembed.cli.options.EmbeddingClient", settings)
    environment(SERVER=f"{two[0].target} {two[1].target}", POLICY="round_robin", BATCH_SIZE=1, PORT=1)
    assert command("embed", "1", "2", "3", "4")[0] == 0
    assert [len(fake.requests) for fake in two] == [2, 2]
    assert settings.call_args.kwargs["policy"] == "round_robin"


def test_health_uses_the_environment_too(command, server, environment):
    environment(MODEL="a")
    code, out, _ = command("health")
    assert (code, "is ready" in out) == (0, True)
    assert server.requests[0].model_name == "a"
