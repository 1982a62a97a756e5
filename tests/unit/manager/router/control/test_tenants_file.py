"""The tenants file: what it says, what is wrong with it, and what happens when it changes."""

import re
from datetime import datetime, timezone

import pytest
from tests.fakes.tenants import hash_of, key_of, write_tenants

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.tenants import TenantsFile, parse_tenants
from tritonembed_manager.router.data.tenants import Key

HASH = hash_of("a")


def of(text: str):
    return parse_tenants(text.encode())


def one(fields: str) -> str:
    return f"tenants: [{{name: a, keys: [{{sha256: {HASH}}}], {fields}}}]"


def test_a_tenant_has_what_the_file_says():
    [tenant] = of(
        f"""
tenants:
  - name: search-team.1
    keys:
      - sha256: {HASH}
      - sha256: {hash_of("b")}
        expires: 2027-06-30
      - {{sha256: "{hash_of("c")}", expires: 2027-06-30T12:00:00+02:00}}
    tokens_per_minute: 1000000
    requests_per_minute: 600
    max_in_flight: 8
    weight: 2
    models: [minilm]
    admin: true
    monitor: yes
"""
    )
    end = datetime(2027, 7, 1, tzinfo=timezone.utc).timestamp()
    noon = datetime(2027, 6, 30, 10, tzinfo=timezone.utc).timestamp()
    assert tenant.keys == (Key(HASH), Key(hash_of("b"), end), Key(hash_of("c"), noon))
    limits = (tenant.tokens_per_minute, tenant.requests_per_minute, tenant.max_in_flight, tenant.weight)
    assert limits == (1_000_000, 600, 8, 2.0)
    assert (tenant.name, tenant.models, tenant.admin, tenant.monitor) == ("search-team.1", ("minilm",), True, True)


LAUGHS = "a: &a [x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)
)
WRONG = [
    ("", "the file: it must have fields"),
    ("tenants: []", "tenants: List should have at least 1 item"),
    ("tenants: [", "line 2: it is not valid YAML"),
    ("tenants: [a]", "tenants[0]: it must have fields"),
    ("tenants:\n  - name: a\n   keys: []", "line 3: it is not valid YAML"),
    (LAUGHS, "line 1: anchors and aliases (& and *) are not allowed"),
    ("tenants: *secret", "line 1: anchors and aliases (& and *) are not allowed"),
    ("[" * 20 + "]" * 20, "line 1: it is nested too deeply"),
    ("tenants: !!python/object/apply:os.system [true]", "line 1: it is not valid YAML"),
    ("tenants: 2027-99-99", "it is not valid YAML"),
    ("tenants: [{name: a, keys: [], name: b}]", "line 1: a field occurs twice"),
    (one("limit: 3"), "tenants[0].limit: there is no such field"),
    (one("'te-secret value': 3"), "tenants[0].…: there is no such field"),
    (one("tokens_per_minute: -5"), "tenants[0].tokens_per_minute: Input should be greater than or equal to 1"),
    (one("requests_per_minute: 0"), "tenants[0].requests_per_minute: Input should be greater than or equal to 1"),
    (one("requests_per_minute: 1.5"), "tenants[0].requests_per_minute: Input should be a valid integer"),
    (one("max_in_flight: many"), "tenants[0].max_in_flight: Input should be a valid integer"),
    (one("weight: 0"), "tenants[0].weight: Input should be greater than or equal to 0.001"),
    (one("weight: .nan"), "tenants[0].weight: Input should be"),
    (one("weight: .inf"), "tenants[0].weight: Input should be"),
    (one("models: []"), "tenants[0].models: List should have at least 1 item"),
    (one("model_limits: {bge: {}}"), "tenants[0].model_limits.bge: it must have a limit: tokens_per_minute"),
    (one("model_limits: {bge: {tokens: 1}}"), "tenants[0].model_limits.bge.tokens: there is no such field"),
    (one("model_limits: {bge: {requests_per_minute: 0}}"), "tenants[0].model_limits.bge.requests_per_minute: Input"),
    (one("admin: 1"), "tenants[0].admin: Input should be a valid boolean"),
    ("tenants: [{name: a}]", "tenants[0].keys: this field is missing"),
    ("tenants: [{name: 'a b', keys: []}]", "tenants[0].name: it must be 1 to 64 letters"),
    (f"tenants: [{{name: {'a' * 65}, keys: []}}]", "tenants[0].name: it must be 1 to 64 letters"),
    ("tenants: [{name: a, keys: []}, {name: a, keys: []}]", "two tenants have the name a"),
    (
        f"tenants: [{{name: a, keys: [{{sha256: {HASH}}}]}}, {{name: b, keys: [{{sha256: {HASH}}}]}}]",
        "a and b have the same key",
    ),
    (f"tenants: [{{name: a, keys: [{{sha256: {key_of('a')}}}]}}]", "tenants[0].keys[0].sha256: it must be the 64 hex"),
    (f"tenants: [{{name: a, keys: [{{sha256: {HASH}, expires: soon}}]}}]", "tenants[0].keys[0].expires"),
]


@pytest.mark.parametrize(("text", "reason"), WRONG)
def test_each_mistake_is_one_line_without_values(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        of(text)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 200
    assert not any(secret in line for secret in (key_of("a"), HASH, "te-secret"))


def test_bytes_that_are_no_text_are_one_line():
    with pytest.raises(ValueError, match="it is not UTF-8"):
        parse_tenants(b"\xff\xfe")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "--tenants: it cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "--tenants: it cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"##"), "--tenants: it cannot be read: larger than 1 MiB"),
        (lambda path: path.write_text("tenants: [{name: -}]"), "--tenants: tenants[0].name"),
    ],
)
def test_a_wrong_file_ends_the_start_without_its_path(tmp_path, prepare, reason):
    prepare(tmp_path / "tenants.yaml")
    with pytest.raises(StartError) as caught:
        TenantsFile(tmp_path / "tenants.yaml")
    assert str(caught.value).startswith(reason)
    assert str(tmp_path) not in str(caught.value)


class NoMoreTurnsError(Exception):
    pass


async def watch(file: TenantsFile, *actions):
    """Watch the file while the test does its actions, one per pause. Returns the names that were passed on."""
    found = []
    left = list(actions)

    async def pause(_seconds):
        if not left:
            raise NoMoreTurnsError
        left.pop(0)()

    with pytest.raises(NoMoreTurnsError):
        await file.watch(lambda tenants: found.append([(tenant.name, tenant.slot) for tenant in tenants]), pause)
    return found


def nothing():
    pass


async def test_new_tenants_are_passed_on_once_and_names_keep_their_slots(tmp_path):
    path = write_tenants(tmp_path / "t", a="", b="")
    file = TenantsFile(path)
    changes = [
        lambda: write_tenants(path, b="weight: 2", c=""),
        nothing,
        nothing,
        lambda: write_tenants(path, c="", a=""),
        nothing,
        nothing,
    ]
    assert await watch(file, nothing, *changes) == [[("b", 1), ("c", 2)], [("c", 2), ("a", 0)]]
    assert file.slots == {"a": 0, "b": 1, "c": 2}


async def test_a_mistake_keeps_the_old_tenants_and_is_one_line_in_the_log(tmp_path, caplog):
    path = write_tenants(tmp_path / "t", a="")
    file = TenantsFile(path)
    good = path.read_bytes()
    spoil = [lambda: path.write_text("tenants: [{name: a, keys: [], quota: -1}]"), *[nothing] * 4]
    assert await watch(file, *spoil) == []
    line = "--tenants: tenants[0].quota: there is no such field; the earlier tenants stay"
    assert file.warnings == [line]
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    assert await watch(file, path.unlink, nothing, nothing) == []
    assert "cannot be read" in file.warnings[0]
    assert await watch(file, lambda: path.write_bytes(good), nothing, nothing) == []
    assert file.warnings == []
    assert [tenant.name for tenant in file.tenants] == ["a"]


async def test_limits_for_a_model_have_slots_of_their_own_which_are_no_tenants(tmp_path):
    path = write_tenants(tmp_path / "t", a="model_limits: {bge: {max_in_flight: 3}}", b="")
    file = TenantsFile(path)
    [a, b] = file.tenants
    assert [(one.key, one.slot, one.max_in_flight) for one in a.all_limits] == [("a", 0, None), ("a/bge", 1, 3)]
    assert (b.slot, file.slots) == (2, {"a": 0, "b": 2})


async def test_slots_run_out_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.control.tenants.SLOTS", 2)
    path = write_tenants(tmp_path / "t", a="")
    file = TenantsFile(path)
    assert await watch(file, lambda: write_tenants(path, b="", c=""), nothing, nothing) == []
    assert "more than 2 different tenants since the start" in file.warnings[0]
    assert await watch(file, lambda: write_tenants(path, a="", b=""), nothing, nothing) == [[("a", 0), ("b", 1)]]
