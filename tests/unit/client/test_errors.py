import pickle

import grpc
import pytest
from tests.unit.client.fake_server import FakeServer

import tritonembed
from tritonembed import (
    AsyncEmbeddingClient,
    AuthenticationError,
    CancelledError,
    DeadlineExceededError,
    EmbeddingClient,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    TritonEmbedError,
    UnavailableError,
)
from tritonembed._errors import STATUS_ERRORS, error_from_status

Code = grpc.StatusCode

EXPECTED = {
    Code.CANCELLED: CancelledError,
    Code.UNKNOWN: ServerError,
    Code.INVALID_ARGUMENT: InvalidArgumentError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.NOT_FOUND: ModelNotFoundError,
    Code.ALREADY_EXISTS: ServerError,
    Code.PERMISSION_DENIED: AuthenticationError,
    Code.RESOURCE_EXHAUSTED: OverloadedError,
    Code.FAILED_PRECONDITION: ServerError,
    Code.ABORTED: ServerError,
    Code.OUT_OF_RANGE: InvalidArgumentError,
    Code.UNIMPLEMENTED: ServerError,
    Code.INTERNAL: ServerError,
    Code.UNAVAILABLE: UnavailableError,
    Code.DATA_LOSS: ServerError,
    Code.UNAUTHENTICATED: AuthenticationError,
}
FAILURES = [code for code in Code if code is not Code.OK]


@pytest.fixture(scope="module")
def failing():
    """A server that fails with the status named in the text."""
    server = FakeServer()

    def fail(request, context):
        context.abort(Code[request.raw_input_contents[0][4:].decode()], "the server's own words")

    server.infer = fail
    yield server
    server.close()


def test_every_status_of_grpc_is_in_the_table():
    assert set(STATUS_ERRORS) == set(FAILURES) == set(EXPECTED)


@pytest.mark.parametrize("code", FAILURES)
def test_every_status_of_a_server_becomes_its_error(failing, code):
    with EmbeddingClient(failing.target) as client, pytest.raises(TritonEmbedError) as caught:
        client.embed([code.name])
    assert type(caught.value) is EXPECTED[code]
    assert (caught.value.code, caught.value.message) == (code, "the server's own words")
    assert str(caught.value) == "the server's own words"


@pytest.mark.parametrize("code", FAILURES)
async def test_every_status_of_a_server_becomes_its_error_in_asyncio(failing, code):
    async with AsyncEmbeddingClient(failing.target) as client:
        with pytest.raises(TritonEmbedError) as caught:
            await client.embed([code.name])
    assert type(caught.value) is EXPECTED[code]
    assert (caught.value.code, caught.value.message) == (code, "the server's own words")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("in ensemble 'embedding', Exceeds maximum queue size", OverloadedError),
        ("more than 4096 sentences are waiting", OverloadedError),
        ("Request timeout expired", DeadlineExceededError),
        ("deadline passed before its turn", DeadlineExceededError),
        ("Request for unknown model: 'embedding' has no available versions", UnavailableError),
    ],
)
def test_tritons_unavailable_is_classified_by_its_message(message, kind):
    assert type(error_from_status(Code.UNAVAILABLE, message)) is kind


def test_a_status_without_a_message_gets_a_message():
    assert "INTERNAL" in str(error_from_status(Code.INTERNAL, None))


def test_no_server_at_the_target_is_unavailable():
    server = FakeServer()
    server.close()
    with EmbeddingClient(server.target) as client, pytest.raises(UnavailableError) as caught:
        client.embed(["1"])
    assert caught.value.code is Code.UNAVAILABLE


def test_errors_are_also_the_built_in_ones_they_resemble():
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(OverloadedError, UnavailableError)


@pytest.mark.parametrize("kind", sorted(set(EXPECTED.values()), key=lambda kind: kind.__name__))
def test_errors_survive_pickling(kind):
    copy = pickle.loads(pickle.dumps(kind("words", Code.INTERNAL)))
    assert type(copy) is kind
    assert (copy.message, copy.code) == ("words", Code.INTERNAL)


def test_the_tree_in_the_docstring_has_every_error():
    from tritonembed import _errors

    errors = [name for name in tritonembed.__all__ if name.endswith("Error")]
    assert all(name in _errors.__doc__ for name in errors)
