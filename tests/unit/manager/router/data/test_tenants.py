"""Keys become tenants."""

import asyncio

import grpc
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.tenants import hash_of, key_of, tenant
from tests.fakes.triton import infer_request

from tritonembed_manager.router.data.envelope import read_envelope
from tritonembed_manager.router.data.failover import digest
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import (
    EXPIRED_KEY,
    NO_KEY,
    UNKNOWN_KEY,
    Key,
    ModelLimits,
    Tenant,
    Tenants,
    check_model,
    current_tenant,
    leave,
)
from tritonembed_manager.router.interfaces import Caller, DispatchError
from tritonembed_protocol.served import ServedModel


@pytest.fixture(autouse=True)
def nobody():
    leave()
    yield
    leave()


def refusal(call, *arguments):
    with pytest.raises(DispatchError) as caught:
        call(*arguments)
    return caught.value.code, caught.value.message


def test_a_key_is_its_tenants_and_nobody_elses():
    tenants = Tenants([tenant("a"), tenant("b", 1)])
    for name in ("a", "b"):
        assert tenants.enter(key_of(name)).name == name
        assert current_tenant().name == name


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, NO_KEY),
        ("", NO_KEY),
        ("te-other", UNKNOWN_KEY),
        (hash_of("a"), UNKNOWN_KEY),
        (key_of("a") + " ", UNKNOWN_KEY),
        ("schlüssel", UNKNOWN_KEY),
        (key_of("late"), EXPIRED_KEY),
    ],
)
def test_any_other_key_is_refused_in_one_line_without_the_key(key, reason):
    tenants = Tenants([tenant("a"), tenant("late", 1, expires=100.0)], clock=lambda: 100.0)
    assert refusal(tenants.enter, key) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert current_tenant() is None


def test_a_key_that_is_taken_away_ends_what_has_begun_with_it():
    tenants = Tenants([tenant("a")])
    tenants.enter(key_of("a"))
    tenants.update([tenant("a", weight=3.0)])
    assert current_tenant().weight == 3
    tenants.update([tenant("b", 1)])
    assert refusal(current_tenant) == (grpc.StatusCode.UNAUTHENTICATED, UNKNOWN_KEY)


async def test_tasks_have_their_own_tenants():
    tenants = Tenants([tenant("a"), tenant("b", 1)])

    async def name(of):
        tenants.enter(key_of(of))
        await asyncio.sleep(0)
        return [current_tenant().name, (await asyncio.create_task(inner())).name]

    async def inner():
        return current_tenant()

    assert await asyncio.gather(name("a"), name("b")) == [["a", "a"], ["b", "b"]]
    assert current_tenant() is None


@pytest.mark.parametrize(
    ("models", "may", "may_not"),
    [
        (None, ["embedding", "embedder", "other"], []),
        (("minilm",), ["embedding", "embedder", "tokenizer", "embedding_chunks"], ["other"]),
        (("embedder",), ["embedder"], ["embedding", "other"]),
        (("other",), ["other"], ["embedding"]),
    ],
)
def test_models_are_those_of_the_file_under_each_of_their_names(models, may, may_not):
    Tenants([tenant("a", models=models)], ServedNames(("minilm",))).enter(key_of("a"))
    for model in may:
        check_model(model)
    for model in may_not:
        assert refusal(check_model, model)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_tenant_may_have_one_of_several_models():
    names = ServedNames(("minilm",), more=(ServedNames(("bge",), ("org/bge",), ServedModel("bge")),))
    Tenants([tenant("a", models=("org/bge",))], names).enter(key_of("a"))
    for model in ServedModel("bge").triton_models:
        check_model(model)
    for model in ServedModel().triton_models:
        assert refusal(check_model, model)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_limits_are_those_of_the_model_under_each_of_its_names_and_follow_the_models():
    names = ServedNames(("minilm",), more=(ServedNames(("bge",), ("org/bge",), ServedModel("bge")),))
    limits = (ModelLimits("a", "org/bge", 1), ModelLimits("a", "later", 2))
    tenants = Tenants([tenant("a", model_limits=limits)], names)

    def limits_of(ensemble):
        return [one.tokens_per_minute for one in tenants.all[0].limits_for(ensemble)]

    assert (limits_of("bge"), limits_of("embedding"), limits_of(""), limits_of("later")) == ([None, 1], *[[None]] * 3)
    names.become(ServedNames(("minilm",), more=(ServedNames(("later",), served=ServedModel("later")),)))
    tenants.names_changed()
    assert (limits_of("bge"), limits_of("later")) == ([None], [None, 2])


def test_a_tenant_survives_the_line_to_the_workers():
    limits = ModelLimits("a", "m", 4, 5, 6, 8)
    full = Tenant("a", (Key("0" * 64, 1.5), Key("1" * 64)), 1, 2, 3, 0.5, ("m",), True, True, 7, (limits,))
    assert Tenant.from_json(full.to_json()) == full


async def test_each_tenant_has_a_cache_salt_of_its_own_and_each_of_its_own_salts_another():
    callers = [Caller("a", is_tenant=True), Caller("b", is_tenant=True)]
    async with data_plane(1) as plane:
        for caller in callers:
            for own in ({}, {"cache_salt": "user 1"}, {"cache_salt": "user 2"}):
                for _ in range(2):
                    await plane.infer(caller=caller, **own)
        salts = [request.parameters["cache_salt"].string_param for request in plane.fakes[0].requests]
    assert salts[::2] == salts[1::2]
    assert len(set(salts)) == 6
    assert all(len(salt) == 32 and "user" not in salt for salt in salts)


async def test_a_name_and_a_salt_are_not_taken_for_another_name_and_salt():
    async with data_plane(1) as plane:
        await plane.infer(caller=Caller("ab", is_tenant=True), cache_salt="c")
        await plane.infer(caller=Caller("a", is_tenant=True), cache_salt="bc")
        first, second = (request.parameters["cache_salt"].string_param for request in plane.fakes[0].requests)
    assert first != second


async def test_without_tenants_a_request_keeps_its_own_salt_or_none():
    async with data_plane(1) as plane:
        await plane.infer()
        await plane.infer(cache_salt="mine")
        without, with_salt = plane.fakes[0].requests
    assert "cache_salt" not in without.parameters
    assert with_salt.parameters["cache_salt"].string_param == "mine"


async def test_the_parts_of_a_large_request_have_its_tenants_salt():
    async with data_plane(2) as plane:
        await plane.infer(*[b"x" * 500] * 700, caller=Caller("a", is_tenant=True))
        requests = [request for fake in plane.fakes for request in fake.requests]
    assert len(requests) > 1
    assert len({request.parameters["cache_salt"].string_param for request in requests}) == 1


async def test_a_query_of_death_is_one_whichever_tenant_sends_it():
    async with data_plane(1) as plane:
        await plane.infer(b"the text", caller=Caller("a", is_tenant=True))
        plane.dispatcher.quarantine.add(_digest_of(b"the text"))
        with pytest.raises(DispatchError, match="two servers died"):
            await plane.infer(b"the text", caller=Caller("b", is_tenant=True))


def _digest_of(text):
    message = infer_request(text).SerializeToString()
    return digest(message, read_envelope(message).own)
