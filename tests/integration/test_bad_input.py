"""Bad input gets INVALID_ARGUMENT with the reason. Good requests in the same batch are answered; nothing is lost."""

import struct
import threading
from collections.abc import Callable

import grpc
import pytest
from tests.processes import model_stubs
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed import EmbeddingClient
from tritonembed_manager.server.process import family, process_table
from tritonembed_perf.server import RunningServer, server_memory_mib

Request = service_pb2.ModelInferRequest


def request(
    elements: list[bytes], model: str = "embedding", name: str = "text", datatype: str = "BYTES",
    shape: list[int] | None = None, **parameters: object,
) -> Request:  # fmt: skip
    made = Request(model_name=model)
    made.inputs.add(name=name, datatype=datatype, shape=shape or [len(elements), 1])
    made.raw_input_contents.append(b"".join(struct.pack("<I", len(item)) + item for item in elements))
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(made.parameters[key], kind, value)
    return made


def tokens(*sentences: bytes, **parameters: object) -> Request:
    return request(list(sentences), model="embedder", name="token_ids", **parameters)


def ids(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


GOOD = b"a good text"
LONG = b"word " * 100
CASES: dict[str, tuple[Callable[[], Request], str]] = {
    "invalid UTF-8 in one of 64 sentences": (
        lambda: request([GOOD] * 40 + [b"\xff\xfe"] + [GOOD] * 23),
        "text: sentence 40",
    ),
    "a lone surrogate": (lambda: request([b"\xed\xa0\x80"]), "text: sentence 0"),
    "wrong dtype": (lambda: request([GOOD], datatype="INT32"), "text"),
    "wrong rank": (lambda: request([GOOD], shape=[1]), "text"),
    "empty batch": (lambda: request([], shape=[0, 1]), ""),
    "wrong count": (lambda: request([GOOD], shape=[2, 1]), "text"),
    "unknown parameter": (lambda: request([GOOD], dimension=3), "'dimension': unknown parameter"),
    "truncate of an unknown value": (lambda: request([GOOD], truncate="MIDDLE"), "truncate: must be one of"),
    "truncate of a wrong type": (lambda: request([GOOD], truncate=1), "truncate: must be one of"),
    "input_type of an unknown value": (lambda: request([GOOD], input_type="question"), "input_type: must be one of"),
    "embedding_type of an unknown value": (lambda: request([GOOD], embedding_type="int4"), "embedding_type: must be"),
    "normalize of a wrong type": (lambda: request([GOOD], normalize="yes"), "normalize: must be a bool"),
    "dimensions 0": (lambda: request([GOOD], dimensions=0), "dimensions: must be at least 1"),
    "dimensions negative": (lambda: request([GOOD], dimensions=-1), "dimensions: must be at least 1"),
    "dimensions too large": (lambda: request([GOOD], dimensions=65), "dimensions: 65 is over the model's 64"),
    "dimensions of a wrong type": (lambda: request([GOOD], dimensions="8"), "dimensions: must be an integer"),
    "int8 without normalisation": (lambda: request([GOOD], embedding_type="int8", normalize=False), "embedding_type"),
    "outputs of an unknown value": (lambda: request([GOOD], outputs="dense,all"), "outputs: must be one or more of"),
    "outputs without a name": (lambda: request([GOOD], outputs=""), "outputs: must be one or more of"),
    "outputs of a wrong type": (lambda: request([GOOD], outputs=1), "outputs: must be one or more of"),
    "an output twice": (lambda: request([GOOD], outputs="sparse,sparse"), "outputs: must be one or more of"),
    "outputs of chunks": (lambda: request([GOOD], outputs="sparse", truncate="CHUNK"), "has dense vectors only"),
    "top_k 0": (lambda: request([GOOD], outputs="sparse", top_k=0), "top_k: must be at least 1"),
    "top_k negative": (lambda: request([GOOD], outputs="sparse", top_k=-3), "top_k: must be at least 1"),
    "top_k of a wrong type": (lambda: request([GOOD], outputs="sparse", top_k="3"), "top_k: must be an integer"),
    "top_k without sparse": (lambda: request([GOOD], top_k=3), "top_k: is for the output sparse"),
    "sparse_threshold negative": (lambda: request([GOOD], outputs="sparse", sparse_threshold=-0.5), "at least 0"),
    "sparse_threshold not a number": (
        lambda: request([GOOD], outputs="sparse", sparse_threshold=float("nan")),
        "at least 0",
    ),
    "return_tokens of a wrong type": (
        lambda: request([GOOD], outputs="sparse", return_tokens="yes"),
        "return_tokens: must be a bool",
    ),
    "dimensions over those of tokens": (
        lambda: request([GOOD], outputs="multi_vector", dimensions=25),
        "dimensions: 25 is over the model's 24",
    ),
    "truncate NONE with a long text": (lambda: request([GOOD, LONG], truncate="NONE"), "maximum of 64"),
    "token bytes not a multiple of 4": (lambda: tokens(b"\x01\x00\x00"), "token_ids: sentence 0 has 3 bytes"),
    "a negative token id": (lambda: tokens(ids(5), ids(7, -1)), "token_ids: sentence 1 has an id outside"),
    "a token id outside the vocabulary": (lambda: tokens(ids(30522)), "vocabulary of 0 to 30521"),
    "no tokens": (lambda: tokens(b""), "token_ids: sentence 0 has no tokens"),
    "too many tokens": (lambda: tokens(ids(*[5] * 65)), "has 65 tokens, over the model's maximum of 64"),
    "more than 1024 sentences": (lambda: request([GOOD] * 1025), "1024"),
    "more bytes than the limit": (lambda: request([b"x" * (33 << 20)]), "over the limit of 33554432"),
}


@pytest.fixture(scope="module")
def infer(server: RunningServer):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_the_reason_while_good_requests_are_answered(infer, case: str) -> None:
    make, said = CASES[case]
    bad = make()
    good = [infer.future(request([GOOD])) for _ in range(8)]
    refused = infer.future(bad)
    good += [infer.future(request([GOOD])) for _ in range(8)]
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.details()
    assert said in refused.details()
    for forbidden in ("Traceback", "/tmp", ".py", "word word", "a good text"):
        assert forbidden not in refused.details()
    for answer in good:
        response = answer.result(timeout=60)
        place = [output.name for output in response.outputs].index("embedding")
        assert len(response.raw_output_contents[place]) == 4 + 64 * 4


def test_after_all_bad_input_the_server_answers_with_the_same_stubs_and_memory(
    infer, server: RunningServer, client: EmbeddingClient
) -> None:
    cases = [make() for name, (make, _) in CASES.items() if name != "more bytes than the limit"]

    def send_all() -> None:
        for call in [infer.future(bad) for _ in range(10) for bad in cases]:
            assert call.code() == grpc.StatusCode.INVALID_ARGUMENT

    send_all()
    before, stubs = server_memory_mib(server.process.pid), stub_pids(server)
    send_all()
    send_all()
    assert stub_pids(server) == stubs
    assert client.embed(["still there"]).embeddings.shape == (1, 64)
    assert server_memory_mib(server.process.pid) <= before * 1.02


def stub_pids(server: RunningServer) -> set[int]:
    return set(model_stubs(family(server.process.pid, process_table())))


def test_a_flood_gets_unavailable_quickly_and_accepted_requests_are_answered(server: RunningServer) -> None:
    """Sends more requests than may wait. None hangs, each is answered or refused, and refusals do not wait."""
    outcomes: list[str] = []
    answered = threading.Condition()
    payload = request([LONG] * 4).SerializeToString()

    def count(call: grpc.Future) -> None:
        with answered:
            outcomes.append(call.code().name)
            answered.notify()

    with grpc.insecure_channel(server.target) as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        total = 0
        # A fast machine answers many of the first 6,000 while they are sent.
        while total < 6000 or ("UNAVAILABLE" not in outcomes and total < 60_000):
            send.future(payload).add_done_callback(count)
            total += 1
        with answered:
            assert answered.wait_for(lambda: len(outcomes) == total, timeout=240)
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
    assert outcomes.count("OK") >= 1000
    last_refusal = total - outcomes[::-1].index("UNAVAILABLE")
    assert outcomes[last_refusal:].count("OK") >= 1000


def test_a_request_whose_deadline_passed_in_the_queue_is_never_computed(server: RunningServer, infer) -> None:
    """The server is busy. Waiting requests with a short timeout are refused and not counted as embedded."""
    before = sentences_embedded(server)
    busy = [infer.future(request([LONG] * 512)) for _ in range(4)]
    early = 0  # before the large requests have reached the queue
    while infer.future(request([GOOD] * 3, timeout=1000)).code() == grpc.StatusCode.OK:
        early += 1
    late = [infer.future(request([GOOD] * 3, timeout=1000)) for _ in range(50)]
    refused = sum(call.code() == grpc.StatusCode.UNAVAILABLE for call in late)
    for call in busy:
        call.result(timeout=120)
    assert refused >= 40
    assert sentences_embedded(server) - before == 4 * 512 + 3 * (early + len(late) - refused)


def sentences_embedded(server: RunningServer) -> int:
    """The engine's own count, once it no longer changes (it is updated twice per second)."""
    import time
    import urllib.request

    seen = -1
    while True:
        time.sleep(1.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        total = sum(int(float(line.split()[1])) for line in lines if line.startswith("tritonembed_sentences_total{"))
        if total == seen:
            return total
        seen = total
