"""Envoy's script finds the tenants of keys and counts quotas as the manager does. It runs in the real Envoy."""

import random
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import grpc
import pytest
from tests.fakes.triton import infer_request
from tests.unit.manager.router.control.envoy.running import envoy, whole_configuration

from tritonembed_manager.router.control.envoy.tenants import EnvoyTenants
from tritonembed_manager.router.data.quotas import AT, USED_REQUESTS, USED_TOKENS, Quotas, QuotaTable, estimate
from tritonembed_manager.router.data.tenants import UNKNOWN_KEY, Key, Tenant
from tritonembed_manager.router.interfaces import DispatchError

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LENGTHS = (1, 43, 54, 55, 56, 57, 63, 64, 65, 118, 119, 120, 127, 128, 200, 256)
"""Of keys, in bytes: around the ends of SHA-256's blocks."""
LIMITED = Tenant("limited", slot=1, requests_per_minute=60, tokens_per_minute=6000, max_in_flight=3)
MESSAGE = infer_request(b"a text").SerializeToString()
WORKERS, ENVOY = 2, 2
CODE = grpc.StatusCode

Ask = Callable[[str], tuple[grpc.StatusCode, str, dict[str, str]]]


def key_of_length(length: int) -> str:
    return "".join(random.Random(length).choices("abcdefghijklmnopqrstuvwxyz0123456789-_", k=length))


def entry(key: str) -> Key:
    return Key(sha256(key.encode()).hexdigest())


@pytest.fixture(scope="module")
def table() -> Iterator[QuotaTable]:
    table = QuotaTable.create(WORKERS + 1, slots=4)
    yield table
    table.close()


@pytest.fixture(scope="module")
def ask(table: QuotaTable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Status, message and trailing metadata of a request with a key. What Envoy would send on ends as UNIMPLEMENTED."""
    folder = tmp_path_factory.mktemp("envoy")
    anyone = Tenant("anyone", slot=0, keys=tuple(entry(key_of_length(length)) for length in LENGTHS))
    limited = Tenant(**{**vars(LIMITED), "keys": (entry("limited"),)})
    configuration = whole_configuration(folder, tenants=EnvoyTenants([anyone, limited], table, ENVOY))
    listener = configuration["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        del route["route"]
        route["direct_response"] = {"status": 404, "body": {"inline_string": "admitted"}}
    with envoy(configuration, folder, [table.fd]) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def ask(key: str) -> Any:
            metadata = [("authorization", f"Bearer {key}")]
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(METHOD)(MESSAGE, timeout=30, wait_for_ready=True, metadata=metadata)
            error = caught.value
            return error.code(), error.details(), dict(error.trailing_metadata())

        yield ask


@pytest.mark.parametrize("length", LENGTHS)
def test_a_key_of_any_length_is_known(ask: Ask, length: int) -> None:
    key = key_of_length(length)
    assert ask(key)[1] == "admitted"
    assert ask(key[:-1] + chr(ord(key[-1]) ^ 1))[1] == UNKNOWN_KEY


def outcome(quotas: Quotas) -> tuple[str, float]:
    """What the manager's own quotas say of the request: the message of a refusal, and the seconds to wait."""
    try:
        # At the door, before the body is read.
        quotas.check(LIMITED)
        charge = quotas.enter(LIMITED, estimate(len(MESSAGE)))
    except DispatchError as error:
        return error.message, error.retry_after or 0.0
    quotas.leave(charge, answered=False, tokens=0, requests=0, charged=0)
    return "admitted", 0.0


def test_quotas_are_those_of_the_manager(ask: Ask, table: QuotaTable) -> None:
    dice = random.Random(1)
    quotas = Quotas(table, 0)
    row, cells = table.row(LIMITED.slot), table.cells
    messages = set()
    for _ in range(200):
        table.shares = dice.choice([1, 2])
        cells[row + USED_REQUESTS] = dice.uniform(0, 70)
        cells[row + USED_TOKENS] = dice.uniform(0, 7000)
        cells[table.worker_cell(LIMITED.slot, 1)] = dice.choice([0, 1, 2, 3])
        cells[row + AT] = time.monotonic() - dice.choice([0, 20])
        # Buckets fill meanwhile: Envoy's answer lies between the manager's before it and the one after it.
        before, limits_before = outcome(quotas), dict(quotas.headers([LIMITED]))
        code, message, metadata = ask("limited")
        after, limits_after = outcome(quotas), dict(quotas.headers([LIMITED]))
        assert message in (before[0], after[0])
        if before[0] != after[0]:
            continue
        messages.add(message)
        assert code is (CODE.UNIMPLEMENTED if message == "admitted" else CODE.RESOURCE_EXHAUSTED)
        if message != "admitted":
            assert round(after[1] * 1000) <= int(metadata["grpc-retry-pushback-ms"]) <= round(before[1] * 1000)
        for what in ("requests", "tokens"):
            assert metadata[f"x-ratelimit-limit-{what}"] == limits_before[f"x-ratelimit-limit-{what}"]
            name = f"x-ratelimit-remaining-{what}"
            # Of an answer, they are after its request was taken back.
            assert int(limits_before[name]) <= int(metadata[name]) <= int(limits_after[name])
        # What a server fails at without the client's fault is free, and nothing stays in flight.
        assert cells[table.worker_cell(LIMITED.slot, ENVOY)] == 0
    assert len(messages) == 4
