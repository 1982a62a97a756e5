import grpc
import pytest

import tritonembed
from tritonembed_protocol.status import STATUSES, Outcome, classify, is_about_models, status_of, unreachable_deadline


def test_every_status_of_grpc_but_ok_has_a_row():
    assert set(STATUSES) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_row_names_an_error_of_the_client():
    assert all(
        issubclass(getattr(tritonembed, status.error), tritonembed.TritonEmbedError) for status in STATUSES.values()
    )


def test_an_unknown_status_is_a_servers_error():
    assert (status_of("NEW").error, status_of("NEW").http) == ("ServerError", 500)


@pytest.mark.parametrize(
    ("code", "details", "outcome"),
    [
        ("INVALID_ARGUMENT", "text[0] is too long", Outcome.ANSWERED),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", Outcome.ANSWERED),
        ("UNAVAILABLE", "in ensemble 'embedding', Exceeds maximum queue size", Outcome.OVERLOAD),
        ("UNAVAILABLE", "more than 4096 sentences are waiting", Outcome.OVERLOAD),
        ("UNAVAILABLE", "Request timeout expired", Outcome.EXPIRED),
        ("UNAVAILABLE", "it would end after its deadline passed: 2 s", Outcome.EXPIRED),
        ("UNAVAILABLE", None, Outcome.BROKEN),
        ("UNAVAILABLE", "failed to connect to all addresses", Outcome.BROKEN),
        ("NOT_FOUND", "Request for unknown model: 'embedding' has no available versions", Outcome.BROKEN),
        ("NOT_FOUND", "Request for unknown model: 'embeding' is not found", Outcome.ANSWERED),
        ("CANCELLED", "", Outcome.BROKEN),
        ("INTERNAL", "Stub process 'embedder_0' is not healthy.", Outcome.STUB_DIED),
        ("INTERNAL", "Failed to increase the shared memory pool size", Outcome.NO_ROOM),
        ("INTERNAL", "Received RST_STREAM with error code 2", Outcome.BROKEN),
        ("UNKNOWN", "Stream removed", Outcome.BROKEN),
        ("UNKNOWN", "something else", Outcome.ANSWERED),
        ("DATA_LOSS", "connection reset", Outcome.ANSWERED),
    ],
)
def test_outcomes_are_distinguished_by_status_and_message(code, details, outcome):
    assert classify(code, details) is outcome
    assert outcome.is_broken == (outcome in (Outcome.BROKEN, Outcome.STUB_DIED))


def test_the_engines_estimate_is_kept_without_what_triton_puts_before_it():
    assert unreachable_deadline("in ensemble 'embedding', it would end after its deadline passed: 2 s") == (
        "it would end after its deadline passed: 2 s"
    )
    assert unreachable_deadline("deadline passed") is unreachable_deadline(None) is None


def test_tritons_message_about_a_model_is_no_broken_connection():
    assert is_about_models("Request for unknown model: 'embedding' has no available versions")
    assert not is_about_models("failed to connect")
    assert not is_about_models(None)
