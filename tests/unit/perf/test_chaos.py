"""A campaign's verdicts: wrong answers, losses that a harm explains, allowed ends of attacks, failures."""

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tests.fakes.triton import vector

from tritonembed_perf.chaos import http2_attacks
from tritonembed_perf.chaos.attack import CANARY, REFUSED, Attack, AttackTarget
from tritonembed_perf.chaos.attackers import Attackers, all_attacks
from tritonembed_perf.chaos.callers import KnownVectors, make_sentences
from tritonembed_perf.chaos.ledger import (
    CONNECTION_LOST,
    SERVER,
    WORKER,
    CampaignLedger,
    Harms,
    LostRequest,
    documented_limit,
    grpc_outcome,
)
from tritonembed_perf.chaos.messages import MESSAGES
from tritonembed_perf.chaos.report import failures


@pytest.fixture
def known() -> KnownVectors:
    sentences = make_sentences(20, random.Random(1))
    return KnownVectors(sentences, np.stack([vector(sentence.encode()) for sentence in sentences]))


def answer(known: KnownVectors, picked: list[int]) -> np.ndarray:
    return np.stack([vector(known.sentences[index].encode()) for index in picked])


def test_right_vectors_have_no_fault_also_with_a_little_rounding(known: KnownVectors) -> None:
    assert known.fault([3, 7, 1], answer(known, [3, 7, 1])) is None
    assert known.fault([3, 7, 1], answer(known, [3, 7, 1]) + np.float32(1e-6)) is None


def test_swapped_vectors_are_a_fault(known: KnownVectors) -> None:
    assert "in place" in (known.fault([3, 7, 1], answer(known, [3, 1, 7])) or "")


def test_nan_another_size_another_length_and_too_few_vectors_are_faults(known: KnownVectors) -> None:
    right = answer(known, [3, 7])
    spoiled = right.copy()
    spoiled[1, 2] = np.nan
    for vectors in (spoiled, right[:, :-1], right[:1], 2 * right):
        assert known.fault([3, 7], vectors.astype(np.float32)) is not None


def test_sentences_whose_vectors_hardly_differ_are_refused_as_a_pool() -> None:
    with pytest.raises(ValueError, match="two sentences"):
        KnownVectors(["a", "b"], np.ones((2, 4), np.float32))


def test_a_broken_connection_is_explained_by_a_harm_to_a_worker_and_by_nothing_else() -> None:
    harms = Harms()
    began = time.monotonic()
    lost = LostRequest("connection lost")
    harms.add("tritonserver killed", SERVER, "server-0", 1)
    assert documented_limit(lost, harms, began, time.monotonic()) is None
    harm = harms.add("worker stopped", WORKER, "", 2)
    assert documented_limit(lost, harms, began, time.monotonic()) is not None
    # Long after its end, a harm explains nothing.
    harm.ended = harm.began
    assert documented_limit(lost, harms, harm.began + 60, harm.began + 61) is None


def test_grpcs_own_error_of_a_stream_that_broke_is_a_lost_connection() -> None:
    assert grpc_outcome("INTERNAL", "Internal error from Core") == CONNECTION_LOST
    assert grpc_outcome("INTERNAL", "the executor failed") == "INTERNAL"
    assert grpc_outcome("UNAVAILABLE", "Socket closed") == "UNAVAILABLE"


def test_an_error_that_no_server_is_ready_is_explained_only_by_an_outage() -> None:
    harms = Harms()
    lost = LostRequest("UNAVAILABLE", "no server became ready before the deadline")
    assert documented_limit(lost, harms, 10, 20) is None
    harms.outage(12, 13)
    assert documented_limit(lost, harms, 10, 20) is not None


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "504", "no answer"])
def test_a_late_request_is_explained_only_if_no_server_could_work_for_nearly_all_of_its_time(code: str) -> None:
    harms = Harms()
    harms.outage(11, 30)
    assert documented_limit(LostRequest(code), harms, 10, 40) is None
    harms.outage(30, 36)
    assert documented_limit(LostRequest(code), harms, 10, 40) is not None


def test_each_harm_explains_one_restart_of_its_own_server() -> None:
    harms = Harms()
    harms.add("tritonserver killed", SERVER, "server-0", 1)
    assert not harms.claim(SERVER, "server-1")
    assert harms.claim(SERVER, "server-0")
    assert not harms.claim(SERVER, "server-0")


async def attacked(outcome: str, message: str = "") -> CampaignLedger:
    """One attack that ends with this outcome, by an attacker that is allowed no more."""

    async def send(_target: AttackTarget, _rng: random.Random) -> tuple[str, str]:
        return outcome, message

    ledger, turns = CampaignLedger(), iter((True, False))
    attackers = Attackers([Attack("kind", send, REFUSED)], ledger, Harms())
    await attackers.run(SimpleNamespace(), 1, lambda: next(turns))  # type: ignore[arg-type]
    return ledger


async def test_an_attack_with_an_allowed_end_is_no_finding() -> None:
    ledger = await attacked("INVALID_ARGUMENT", "input text: wrong shape")
    assert (ledger.attacked, ledger.findings) == (1, [])


@pytest.mark.parametrize("outcome", ["OK", "INTERNAL", "UNAVAILABLE", "500", "no answer", "closed"])
async def test_an_attack_with_another_end_is_a_finding(outcome: str) -> None:
    assert (await attacked(outcome)).unexpected == {"kind": 1}


async def test_an_error_that_holds_a_requests_text_is_a_finding() -> None:
    assert (await attacked("INVALID_ARGUMENT", f"bad text: a {CANARY} sentence")).unexpected == {"kind": 1}


def test_every_message_of_every_kind_is_made_and_none_is_named_twice() -> None:
    for make, _, _ in MESSAGES.values():
        assert all(isinstance(make(random.Random(seed)), bytes) for seed in range(4))
    names = [attack.name for attack in all_attacks()]
    assert len(names) == len(set(names)) > 50


def test_the_same_seed_makes_the_same_message() -> None:
    for make, _, _ in MESSAGES.values():
        assert make(random.Random(5)) == make(random.Random(5))


def test_header_fields_are_literals_with_hpacks_lengths() -> None:
    # RFC 7541 has 1337 in a prefix of five bits (C.1.2). In seven bits, the rest is 1337 - 127 = 1210 = 9 * 128 + 58.
    assert http2_attacks.block([(b"a", b"\xe9")]) == b"\0\1a\1\xe9"
    assert http2_attacks.block([(b"a", b"v" * 1337)]) == b"\0\1a" + bytes((127, 58 + 128, 9)) + b"v" * 1337


def campaign(**ledger: object) -> tuple[object, dict]:
    """A good campaign except for these figures."""
    figures = {"wrong": 0, "lost": 0, "answered": 5, "unexpected": {}, "uncaused": {}, "highest_worker_mib": 100.0}
    memory = {"start": {"shm_regions": 4}, "end": {"shm_regions": 4}, "growth_percent": {"in all": 1.0}}
    log = {"with_a_request's_words": 0, "with_control_bytes": 0, "tracebacks": 0}
    run = SimpleNamespace(ledger=SimpleNamespace(**{**figures, **ledger}), recovered=True)
    return run, {"memory": memory, "log": log, "left_running": []}


def test_a_good_campaign_fails_nothing() -> None:
    assert failures(*campaign(), most_growth=2.0) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ledger",
    [{"wrong": 1}, {"lost": 1}, {"answered": 0}, {"unexpected": {"a": 1}}, {"highest_worker_mib": 2000.0}],
)
def test_a_wrong_vector_a_lost_request_or_a_strange_end_fails_a_campaign(ledger: dict) -> None:
    assert len(failures(*campaign(**ledger), most_growth=2.0)) == 1  # type: ignore[arg-type]


def test_memory_leftovers_and_lines_of_the_log_fail_a_campaign() -> None:
    run, report = campaign()
    report["memory"]["growth_percent"]["in all"] = 2.1
    report["memory"]["end"]["shm_regions"] = 5
    report["left_running"] = ["tritonserver"]
    report["log"]["tracebacks"] = 1
    run.recovered = False
    assert len(failures(run, report, most_growth=2.0)) == 5  # type: ignore[arg-type]
