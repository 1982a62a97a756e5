"""Envoy sends a server only requests that the manager's own check accepts. The script runs in the real Envoy."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from tests.fakes.triton import infer_request
from tests.unit.manager.router.control.envoy.running import envoy, whole_configuration

from tritonembed_manager.router.data.envelope import read_envelope
from tritonembed_manager.router.data.failover import digest
from tritonembed_manager.router.data.protobuf import RefusedMessage, WrongMessage

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_BYTES = 100_000
QUARANTINED = infer_request(b"a query of death").SerializeToString()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Where Envoy sends an encoded request: "server" or "worker"."""
    folder = tmp_path_factory.mktemp("envoy")
    size = int(digest(QUARANTINED, read_envelope(QUARANTINED).own).partition(":")[0])
    configuration = whole_configuration(folder, sizes=[size], max_bytes=MAX_BYTES)
    listener = configuration["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    for route in host["routes"]:
        # Instead of being sent on, a request is answered with its way.
        is_plain = len(route["match"].get("headers", ())) == 2
        del route["route"]
        route["direct_response"] = {"status": 404, "body": {"inline_string": "server" if is_plain else "worker"}}
    with envoy(configuration, folder) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def ask(message: bytes, **options: Any) -> str:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(METHOD)(message, timeout=30, wait_for_ready=True, **options)
            return str(caught.value.details())

        yield ask


def request(change: Callable[[Any], object] = lambda _: None, *texts: bytes) -> bytes:
    message = infer_request(*(texts or (b"a text",)))
    change(message)
    return bytes(message.SerializeToString())


def typical(message: Any) -> None:
    message.id = "request 1"
    message.parameters["timeout"].int64_param = 60_000_000
    message.parameters["truncate"].string_param = "END"
    message.parameters["normalize"].bool_param = True
    message.parameters["share"].double_param = 0.5
    message.outputs.add(name="embedding")
    message.outputs.add(name="num_tokens")


@pytest.mark.parametrize("texts", [(b"a text",), (b"a", b"", b"c" * 300), ("ä €".encode(),), tuple([b"x"] * 1024)])
def test_plain_requests_go_to_a_server(where: Callable[..., str], texts: tuple[bytes, ...]) -> None:
    assert where(request(lambda _: None, *texts)) == "server"
    assert where(request(typical, *texts)) == "server"


def test_a_request_up_to_the_limit_goes_to_a_server(where: Callable[..., str]) -> None:
    around = len(request(lambda m: m.raw_input_contents.__setitem__(0, element(90_000)))) - 90_000
    for size, way in ((MAX_BYTES, "server"), (MAX_BYTES + 1, "worker")):
        change = partial(lambda m, size: m.raw_input_contents.__setitem__(0, element(size)), size=size - around)
        assert (len(request(change)), where(request(change))) == (size, way)


def element(size: int) -> bytes:
    """A tensor of one element of this size."""
    return size.to_bytes(4, "little") + b"x" * size


def classified(message: Any) -> None:
    message.outputs.add(name="embedding").parameters["classification"].int64_param = 3


NOT_PLAIN: dict[str, Callable[[Any], object]] = {
    "classification": classified,
    "shared memory": lambda m: m.inputs[0].parameters["shared_memory_region"].CopyFrom(type(m.parameters["a"])()),
    "another model": lambda m: setattr(m, "model_name", "tokenizer"),
    "an embedding space": lambda m: setattr(m.parameters["embedding_space"], "string_param", "0-float32"),
    "an adapter": lambda m: setattr(m.parameters["adapter"], "string_param", "law"),
    "a version": lambda m: setattr(m, "model_version", "1"),
    "two inputs": lambda m: m.inputs.add(name="text"),
    "contents": lambda m: m.inputs[0].contents.bytes_contents.append(b"a"),
    "another datatype": lambda m: setattr(m.inputs[0], "datatype", "FP32"),
    "too many rows": lambda m: m.inputs[0].shape.__setitem__(0, 2),
    "a negative size": lambda m: m.inputs[0].shape.__setitem__(0, -1),
    "a broken frame": lambda m: m.raw_input_contents.__setitem__(0, b"\xff\x00\x00\x00a"),
    "a long id": lambda m: setattr(m, "id", "i" * 1025),
    "a NUL in a name": lambda m: setattr(m.inputs[0], "name", "te\0xt"),
    "a prompt that is not ASCII": lambda m: setattr(m.parameters["prompt"], "string_param", "für"),
}


@pytest.mark.parametrize("change", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_everything_else_goes_to_a_worker(where: Callable[..., str], change: Callable[[Any], object]) -> None:
    assert where(request(change)) == "worker"


def test_bytes_that_are_no_request_and_compressed_requests_go_to_a_worker(where: Callable[..., str]) -> None:
    assert where(b"") == "worker"
    assert where(b"\xff\xff") == "worker"
    assert where(request() * 2) == "worker"
    assert where(request(lambda _: None, b"a" * 5000), compression=grpc.Compression.Gzip) == "worker"


def test_a_request_for_an_embedding_space_in_its_metadata_goes_to_a_worker(where: Callable[..., str]) -> None:
    assert where(request(), metadata=[("x-embedding-space", "0-float32")]) == "worker"


def test_a_client_cannot_mark_its_request_itself(where: Callable[..., str]) -> None:
    assert where(request(classified), metadata=[("x-tritonembed-plain", "1")]) == "worker"


def test_a_request_with_the_size_of_one_in_quarantine_goes_to_a_worker(where: Callable[..., str]) -> None:
    assert where(QUARANTINED) == "worker"

    # Requests that ask for the same differ in id and timeout.
    def with_own(message: Any) -> None:
        message.id = "another"
        message.parameters["timeout"].int64_param = 5

    assert where(request(with_own, b"a query of death")) == "worker"
    assert where(request(with_own, b"a query of lifes")) == "worker"
    assert where(request(with_own, b"a query of life")) == "server"


def test_the_manager_accepts_all_that_envoy_sends_to_a_server(where: Callable[..., str]) -> None:
    dice = random.Random(1)
    sources = [request(typical), request(classified), request(typical, b"a", b"b"), request()]
    ways = []
    for _ in range(1500):
        spoiled = bytearray(dice.choice(sources))
        for _ in range(dice.choice([1, 1, 2, 8])):
            place = dice.randrange(len(spoiled))
            kind = dice.randrange(3)
            if kind == 0:
                spoiled[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                del spoiled[place : place + dice.randrange(4)]
            else:
                spoiled[place:place] = dice.randbytes(dice.randrange(4))
        ways.append(where(bytes(spoiled)))
        if ways[-1] == "server":
            try:
                read_envelope(bytes(spoiled))
            except (RefusedMessage, WrongMessage) as error:
                pytest.fail(f"{bytes(spoiled)!r}: {error}")
    assert ways.count("server") > 100
    assert ways.count("worker") > 500
