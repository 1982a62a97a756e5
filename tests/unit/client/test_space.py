"""The embedding space: asked for, told, and never mixed."""

import json
import struct
import time

import grpc
import numpy as np
import pytest
from tests.unit.client.fake_server import elements, embed, parameters
from tritonclient.grpc import service_pb2

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, EmbeddingResult, InvalidArgumentError, ServerError
from tritonembed.cli.app import run
from tritonembed_protocol.framing import frame
from tritonembed_protocol.space import HEADER, QUALITY, SPACE, of_another_space


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
    server.tells_its_space = True
    server.infer = Spaces("aa-float32")
    assert client.info().embedding_space == "aa-float32"
    async with AsyncEmbeddingClient(server.target) as aclient:
        assert (await aclient.info()).embedding_space == "aa-float32"


class Quantized(Spaces):
    """A server that also reports this content about its quantization; None: it has no such output."""

    def __init__(self, space, content):
        super().__init__(space)
        self.content = content

    def __call__(self, request, context):
        if [output.name for output in request.outputs] != [QUALITY]:
            return super().__call__(request, context)
        if self.content is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output")
        assert parameters(request) == {SPACE: self.spaces[0]}
        response = service_pb2.ModelInferResponse(model_name="embedder", raw_output_contents=[self.content])
        response.outputs.add(name=QUALITY, datatype="FP64", shape=(1, 1))
        return response


@pytest.mark.parametrize(
    ("space", "content", "quality"),
    [
        ("aa-int8", struct.pack("<d", 0.9831), 0.9831),
        ("aa-int8", None, None),
        ("aa-int8", b"0.98", None),
        ("aa-int8", struct.pack("<d", float("nan")), None),
        ("aa-float32", struct.pack("<d", 0.9831), None),
    ],
)
async def test_info_tells_what_int8_keeps_and_of_other_precisions_nothing(client, server, space, content, quality):
    server.tells_its_space = True
    server.infer = Quantized(space, content)
    assert (client.info().embedding_space, client.info().quantization_quality) == (space, quality)
    async with AsyncEmbeddingClient(server.target) as aclient:
        assert (await aclient.info()).quantization_quality == quality


def test_a_result_still_unpacks_into_two():
    assert len(tuple(EmbeddingResult([], [], "aa-float32"))) == 2


def test_the_command_asks_for_a_space_and_shows_it(server, tmp_path, capfd):
    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(["--port", str(server.port), "--host", "127.0.0.1", *arguments])
        return (caught.value.code, *capfd.readouterr())

    server.tells_its_space = True
    server.infer = Spaces("aa-float32")
    assert "space       aa-float32" in command("info")[1]
    assert "int8 " not in command("info")[1]
    server.infer = Quantized("aa-int8", struct.pack("<d", 0.98306))
    assert "int8        keeps 0.9831 of the ten nearest of its calibration texts\n" in command("info")[1]
    assert json.loads(command("info", "--json")[1])["quantization_quality"] == 0.98306
    server.infer = Spaces("aa-float32")
    assert json.loads(command("info", "--json")[1])["embedding_space"] == "aa-float32"
    code, _, err = command("embed", "1", "--embedding-space", "aa-float32", "-o", str(tmp_path / "out.npy"))
    assert (code, "embedding space aa-float32" in err) == (0, True)
    assert parameters(server.requests[-1]) == {SPACE: "aa-float32"}
    server.infer = Spaces("aa-float32", "bb-float32")
    code, _, err = command("embed", "1", "2", "--batch-size", "1", "-o", str(tmp_path / "mixed.npy"))
    assert (code, "the model changed during the call" in err) == (1, True)
    assert not (tmp_path / "mixed.npy").exists()


class Triton:
    """An ``infer`` as Triton's: answers do not name their space, and a request for another one is refused.

    spaces: of the servers behind one address, which answer in turn.
    """

    def __init__(self, *spaces):
        self.spaces = list(spaces)
        self.at = 0
        self.asked = []

    def __call__(self, request, context):
        space = self.spaces[self.at % len(self.spaces)]
        self.at += 1
        adapter = parameters(request).get("adapter", "")
        wanted = parameters(request).get(SPACE, adapter + space)
        self.asked.append(parameters(request).get(SPACE))
        if wanted != adapter + space:
            reason = of_another_space(adapter + space)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"in ensemble 'embedding', {SPACE}: {reason}")
        response = embed(request, context)
        if [output.name for output in request.outputs] == [SPACE]:
            self.asked[-1] = "question"
            del response.outputs[:], response.raw_output_contents[:]
            response.outputs.add(name=SPACE, datatype="BYTES", shape=(1, 1))
            response.raw_output_contents.append(frame([(adapter + space).encode()]))
        return response


@pytest.fixture
def triton(server):
    server.tells_its_space = True
    server.infer = Triton("aa-float32")
    return server.infer


def test_a_triton_without_a_manager_is_asked_once_and_checks_the_space_from_then_on(client, triton):
    assert client.embed(["1"]).embedding_space == "aa-float32"
    assert triton.asked == [None, "question"]
    assert client.embed(["1"]).embedding_space == "aa-float32"
    assert [part.embedding_space for part in client.iter_embed(["1"] * 9, batch_size=1)] == ["aa-float32"] * 9
    assert client.embed_tokens([[1]]).embedding_space == "aa-float32"
    assert triton.asked == [None, "question", *["aa-float32"] * 11]
    assert client.embed(["1"], adapter="law").embedding_space == "lawaa-float32"
    assert client.embed(["1"], adapter="law").embedding_space == "lawaa-float32"
    assert triton.asked[-3:] == [None, "question", "lawaa-float32"]
    with pytest.raises(InvalidArgumentError, match="the vectors here are of the space aa-float32"):
        client.embed(["1"], embedding_space="bb-float32")


async def test_the_asyncio_client_asks_too(server, triton):
    async with AsyncEmbeddingClient(server.target) as client:
        assert (await client.embed(["1"])).embedding_space == "aa-float32"
        assert (await client.embed(["1"] * 9, batch_size=1)).embedding_space == "aa-float32"
        triton.spaces = ["bb-float32"]
        assert (await client.embed(["1"] * 9, batch_size=1)).embedding_space == "bb-float32"
        assert (await client.embed(["1"])).embedding_space == "bb-float32"
    assert triton.asked.count("question") == 1


@pytest.mark.parametrize("count", [1, 30])
def test_another_model_at_the_same_address_is_noticed_and_costs_one_refusal_per_request(client, triton, count):
    client.embed(["1"])
    triton.spaces, triton.asked = ["bb-float32"], []
    result = client.embed([str(number) for number in range(count)], batch_size=1)
    assert (result.embedding_space, result.embeddings[:, 0].tolist()) == ("bb-float32", list(range(count)))
    assert triton.asked.count("bb-float32") == count
    assert 1 <= triton.asked.count("aa-float32") <= min(count, 2 * 8)
    assert client.embed(["1"]).embedding_space == "bb-float32"


def test_a_model_that_changes_within_a_call_is_an_error(client, server, triton):
    client.embed(["1"])

    def infer(request, context):
        triton.spaces = ["bb-float32" if elements(request) == [b"2"] else "aa-float32"]
        return triton(request, context)

    server.infer = infer
    with pytest.raises(ServerError, match="the model changed during the call"):
        client.embed(["1", "2"], batch_size=1)


@pytest.mark.parametrize("count", [1, 30])
def test_servers_of_several_precisions_behind_one_address_answer_all_and_name_no_space(client, triton, count):
    client.embed(["1"])
    triton.spaces = ["aa-float32", "aa-16bit"]
    for _ in range(6):
        result = client.embed(["1"] * count, batch_size=1)
        assert result.embeddings.shape == (count, 10)
        assert result.embedding_space in ("aa-float32", "aa-16bit", None)
    assert client.embed(["1"]).embedding_space is None
    triton.asked = []
    client.embed(["1"] * count, batch_size=1)
    assert set(triton.asked) == {None}


def test_a_header_names_the_space_as_envoys_answers_do(client, server, triton):
    def behind_envoy(request, context):
        context.send_initial_metadata([(HEADER, "cc-float32")])
        return embed(request, context)

    server.infer = behind_envoy
    assert client.embed(["1"]).embedding_space == "cc-float32"
    assert client.embed(["1", "2"], batch_size=1).embedding_space == "cc-float32"
    assert [parameters(request) for request in server.requests] == [{}] * 3


def test_a_server_that_can_not_tell_is_asked_once_a_minute(client, server, monkeypatch):
    asked = []
    server.infer = lambda request, context: asked.append(list(request.outputs)) or embed(request, context)
    server.tells_its_space = True
    for _ in range(3):
        assert client.embed(["1"]).embedding_space is None
    assert len(asked) == 4
    now = time.monotonic()
    monkeypatch.setattr(client._spaces, "_clock", lambda: now + 61)
    client.embed(["1"])
    assert len(asked) == 6


def test_each_of_several_servers_names_its_own_space(two):
    for fake, space in zip(two, ("aa-float32", "aa-16bit"), strict=True):
        fake.tells_its_space, fake.infer = True, Triton(space)
    with EmbeddingClient([fake.target for fake in two], policy="round_robin") as client:
        found = [client.embed(["1"]).embedding_space for _ in range(6)]
        assert set(found) <= {"aa-float32", "aa-16bit", None}
        assert client.embed(["1"] * 20, batch_size=1).embeddings.shape == (20, 10)


def test_a_reranker_is_asked_by_its_own_model(client, server, triton):
    names = []

    def infer(request, context):
        names.append(request.model_name)
        if request.model_name == "scorer":
            return triton(request, context)
        response = service_pb2.ModelInferResponse()
        for name, content in (("score", np.ones(1, "<f4")), ("num_tokens", np.ones(1, "<i4"))):
            response.outputs.add(name=name)
            response.raw_output_contents.append(content.tobytes())
        return response

    server.infer = infer
    assert client.score("1", ["2"]).embedding_space == "aa-float32"
    assert client.rerank("1", ["2"]).embedding_space == "aa-float32"
    assert names == ["rerank", "scorer", "rerank"]
