"""Keys become tenants."""

import asyncio

import grpc
import pytest
from tests.fakes.tenants import hash_of, key_of, tenant

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import (
    EXPIRED_KEY,
    NO_KEY,
    UNKNOWN_KEY,
    Key,
    Tenant,
    Tenants,
    check_model,
    current_tenant,
    leave,
)
from tritonembed_manager.router.interfaces import DispatchError
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


def test_a_tenant_survives_the_line_to_the_workers():
    full = Tenant("a", (Key("0" * 64, 1.5), Key("1" * 64)), 1, 2, 3, 0.5, ("m",), True, True, 7)
    assert Tenant.from_json(full.to_json()) == full
