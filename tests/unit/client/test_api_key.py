"""A tenant's key: where the client takes it from, and that it is shown nowhere."""

import pytest
from tests.unit.client.test_cli_environment import command, environment  # noqa: F401 - fixtures

from tritonembed import EmbeddingClient

VARIABLE = "TRITONEMBED_API_KEY"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def sent(server, **options):
    with EmbeddingClient(server.target, **options) as client:
        client.embed(["1"])
    return server.metadata[-1].get("authorization")


def test_the_key_is_an_argument_or_a_variable(server, monkeypatch):
    assert sent(server) is None
    monkeypatch.setenv(VARIABLE, "te-variable")
    assert sent(server) == "Bearer te-variable"
    assert sent(server, api_key="te-argument") == "Bearer te-argument"
    assert sent(server, api_key="") is None
    # A key for a proxy in front is meant for it alone.
    assert sent(server, metadata={"Authorization": "Bearer proxy"}) == "Bearer proxy"


def test_a_call_may_have_another_key(server):
    with EmbeddingClient(server.target, api_key="te-client") as client:
        client.embed(["1"], metadata={"authorization": "Bearer te-call"})
        client.embed(["1"], metadata={"x-api-key": "te-call"})
        client.info()
    assert server.metadata[0]["authorization"] == "Bearer te-call"
    assert "authorization" not in server.metadata[1]


def test_two_keys_and_keys_that_can_not_be_sent_are_errors_without_the_key():
    with pytest.raises(ValueError, match="api_key and metadata both have a key"):
        EmbeddingClient(api_key="te-secret", metadata={"x-api-key": "te-secret"})
    for key in ("te-secret\n", "te secret", "te-sécret"):
        with pytest.raises(ValueError, match=r"api_key .* must be printable ASCII") as caught:
            EmbeddingClient(api_key=key)
        assert "cret" not in str(caught.value)
    client = EmbeddingClient(api_key="te-secret")
    assert "te-secret" not in repr(client)
    client.close()


def test_the_command_has_an_option_and_the_same_variable(command, server, environment, monkeypatch):  # noqa: F811
    monkeypatch.setenv(VARIABLE, "te-variable")
    assert command("embed", "1")[0] == 0
    assert command("--api-key", "te-before", "embed", "1")[0] == 0
    assert command("embed", "1", "--api-key", "te-after")[0] == 0
    expected = ["te-variable", "te-before", "te-after"]
    assert [metadata["authorization"] for metadata in server.metadata] == [f"Bearer {key}" for key in expected]
    code, out, err = command("embed", "1", "--api-key", "te secret")
    assert (code, out) == (2, "")
    assert "secret" not in err
    assert "te-variable" not in command("embed", "--help")[1]
