"""The embedding space: asked for, told, and never mixed."""

import json

import pytest
from tests.unit.client.fake_server import embed, parameters

from tritonembed import AsyncEmbeddingClient, EmbeddingResult, InvalidArgumentError, ServerError
from tritonembed.cli.app import run
from tritonembed_protocol.framing import frame
from tritonembed_protocol.space import SPACE


class Spaces:
    """An ``infer`` as a manager's, whose answers name these spaces in turn; the last one stays."""

    def __init__(self, *spaces):
        self.spaces = list(spaces)

    def __call__(self, request, context):
        space = self.spaces.pop(0) if len(self.spaces) > 1 else self.spaces[0]
        response = embed(request, context)
        if [output.name for output in request.outputs] == [SPACE]:
            del response.outputs[:], response.raw_output_contents[:]
            response.outputs.add(name=SPACE, datatype="BYTES", shape=(1, 1))
            response.raw_output_contents.append(frame([space.encode()]))
        elif space:
            response.parameters[SPACE].string_param = space
        return response


def test_a_result_has_the_space_of_its_answers(client, server):
    server.infer = Spaces("aa-float32")
    assert client.embed(["1", "2", "3"], batch_size=1).embedding_space == "aa-float32"
    assert [part.copy().embedding_space for part in client.iter_embed(["1", "2"], batch_size=1)] == ["aa-float32"] * 2
    assert SPACE not in parameters(server.requests[0])


def test_a_server_that_does_not_tell_has_checked_what_was_asked_for(client, server):
    assert client.embed(["1"]).embedding_space is None
    assert client.embed(["1"], embedding_space="aa-float32").embedding_space == "aa-float32"
    assert parameters(server.requests[-1]) == {SPACE: "aa-float32"}
    assert client.embed_tokens([[1]], embedding_space="aa-float32").embedding_space == "aa-float32"
    assert client.embed([], embedding_space="aa-float32").embedding_space is None


def test_vectors_of_two_models_are_an_error_and_of_two_precisions_have_no_one_space(client, server):
    server.infer = Spaces("aa-float32", "bb-float32")
    with pytest.raises(ServerError, match="the model changed during the call"):
        client.embed(["1", "2"], batch_size=1)
    server.infer = Spaces("aa-float32", "aa-16bit")
    result = client.embed(["1", "2"], batch_size=1)
    assert (len(result.embeddings), result.embedding_space) == (2, None)


@pytest.mark.parametrize(("wrong", "error"), [(7, TypeError), ("\ud800", InvalidArgumentError)])
def test_what_can_not_be_sent_is_refused_here(client, server, wrong, error):
    with pytest.raises(error, match="embedding_space"):
        client.embed(["1"], embedding_space=wrong)
    assert server.requests == []


async def test_info_tells_the_space_if_the_server_can(client, server):
    assert client.info().embedding_space is None
    server.infer = Spaces("aa-float32")
    assert client.info().embedding_space == "aa-float32"
    async with AsyncEmbeddingClient(server.target) as aclient:
        assert (await aclient.info()).embedding_space == "aa-float32"


def test_a_result_still_unpacks_into_two():
    assert len(tuple(EmbeddingResult([], [], "aa-float32"))) == 2


def test_the_command_asks_for_a_space_and_shows_it(server, tmp_path, capfd):
    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(["--port", str(server.port), "--host", "127.0.0.1", *arguments])
        return (caught.value.code, *capfd.readouterr())

    server.infer = Spaces("aa-float32")
    assert "space       aa-float32" in command("info")[1]
    assert json.loads(command("info", "--json")[1])["embedding_space"] == "aa-float32"
    code, _, err = command("embed", "1", "--embedding-space", "aa-float32", "-o", str(tmp_path / "out.npy"))
    assert (code, "embedding space aa-float32" in err) == (0, True)
    assert parameters(server.requests[-1]) == {SPACE: "aa-float32"}
    server.infer = Spaces("aa-float32", "bb-float32")
    code, _, err = command("embed", "1", "2", "--batch-size", "1", "-o", str(tmp_path / "mixed.npy"))
    assert (code, "the model changed during the call" in err) == (1, True)
    assert not (tmp_path / "mixed.npy").exists()
