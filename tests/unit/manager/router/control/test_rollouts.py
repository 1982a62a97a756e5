"""What the manager does when the models file has changed, over servers that only have states."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.launched import PreparedServer
from tritonembed_manager.router.control.plan import ServerPlan, VersionPlan, with_version_names
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.control.rollouts import Rollouts
from tritonembed_manager.router.control.settings import ModelsPlan
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.models_file import ModelEntry, served_as
from tritonembed_manager.server.probe import ProbeError
from tritonembed_manager.server.settings import RenderSettings

VECTORS = np.ones((3, 4), dtype=np.float32)


def plan_of(**models):
    """A file's models, the first of which is the first model: each has a path, or paths with their weights."""
    entries = [ModelEntry("", name) for name in models]
    all_names = []
    versions = []
    for served, (name, given) in zip(served_as(entries), models.items(), strict=True):
        all_names.append(ServedNames((name,), (), served))
        paths = given if isinstance(given, dict) else {given: 100.0}
        own = [
            VersionPlan(served, ModelEntry(path, name), (ServerPlan(RenderSettings(path, served=served), 1),), weight)
            for path, weight in paths.items()
        ]
        versions += with_version_names(own)
    first, *more = all_names
    first.more = tuple(more)
    return ModelsPlan(first, versions)


class FakeServers:
    """Servers without processes: a test says when they are ready."""

    def __init__(self):
        self.registry = UpstreamRegistry(16, time.monotonic, lambda: None)
        self.launched = {}
        self.released = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    def launch(self, server, *, weight=100.0, is_loaded=True):
        version = server.version
        self.registry.add(server.id, "h:1", launched=True, model=version.served, version=version.name, weight=weight)
        self.launched[server.id] = SimpleNamespace(
            failed_first_start=asyncio.Event(), our_reason=None, first_failure="it has no memory"
        )

    def set_weight(self, id, weight):
        self.registry.set_weight(self.registry.upstreams[id], weight)

    async def withdraw(self, id):
        await self.may_end.wait()
        self.registry.remove(id)
        del self.launched[id]


class Case:
    def __init__(self, plan):
        self.servers = FakeServers()
        self.count = 0
        self.refusal = None
        self.sent = []
        self.names = plan.names
        started = self.prepare(plan.versions)
        self.rollouts = Rollouts(
            self.servers, plan, started, self.names, self.prepare, lambda: self.sent.append(self.known())
        )
        for server in started:
            self.servers.launch(server, weight=self.rollouts.weight_before_checks(server.version))
            self.ready(server.id)

    def prepare(self, versions):
        if self.refusal:
            raise StartError(self.refusal)
        found = []
        for version in versions:
            id = f"s{self.count}"
            self.count += 1
            release = lambda id=id: self.servers.released.append(id)  # noqa: E731
            found.append(PreparedServer(id, None, None, 1, version, release=release))
        return found

    def ready(self, id, vectors=VECTORS):
        self.servers.registry.answered(self.servers.registry.upstreams[id], vectors)

    def known(self):
        return [names.model for names in self.names.models]

    def weights(self):
        return {id: (one.version, one.weight) for id, one in self.servers.registry.upstreams.items()}

    async def until(self, **weights):
        """Wait until the servers have these versions and weights."""

        async def come():
            while self.weights() != weights:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(come(), 20)


async def test_a_changed_model_is_switched_once_it_is_ready_and_the_old_one_ends():
    case = Case(plan_of(a="x/one"))
    case.servers.may_end.clear()
    case.rollouts.follow(plan_of(a="x/two"))
    await case.until(s0=("one", 100.0), s1=("two", 0.0))
    case.ready("s1")
    await case.until(s0=("one", 0.0), s1=("two", 100.0))
    assert case.servers.released == []
    case.servers.may_end.set()
    await case.until(s1=("two", 100.0))
    assert (case.servers.released, case.known(), case.sent) == (["s0"], ["a"], [])


async def test_a_model_is_named_once_it_is_ready_and_not_any_more_once_it_is_gone():
    case = Case(plan_of(a="x/one"))
    case.rollouts.follow(plan_of(a="x/one", b="y/two"))
    await case.until(s0=("one", 100.0), s1=("two", 0.0))
    assert case.sent == []
    case.ready("s1")
    await case.until(s0=("one", 100.0), s1=("two", 100.0))
    assert case.sent == [["a", "b"]]
    case.rollouts.follow(plan_of(a="x/one"))
    await case.until(s0=("one", 100.0))
    assert case.sent == [["a", "b"], ["a"]]


async def test_versions_of_a_path_with_other_settings_have_names_of_their_own():
    case = Case(plan_of(a="x/one"))
    changed = plan_of(a="x/one")
    changed.versions[0] = VersionPlan(
        changed.versions[0].served, ModelEntry("x/one", "a", replicas=2), changed.versions[0].plans
    )
    case.rollouts.follow(changed)
    await case.until(s0=("one", 100.0), s1=("one.2", 0.0))


@pytest.mark.parametrize("how", ["check", "start", "refused"])
async def test_a_new_version_that_can_not_be_served_leaves_the_old_one_and_says_so(how):
    case = Case(plan_of(a="x/one"))
    if how == "check":
        case.refusal = "--model: it has no tokenizer"
    case.rollouts.follow(plan_of(a="x/two"))
    if how != "check":
        await case.until(s0=("one", 100.0), s1=("two", 0.0))
    if how == "start":
        case.servers.launched["s1"].failed_first_start.set()
    if how == "refused":
        case.servers.registry.set_state(
            case.servers.registry.upstreams["s1"], ServerState.REFUSED, "its vectors differ"
        )
    reason = {"check": case.refusal, "start": "it has no memory", "refused": "its vectors differ"}[how]
    while not case.rollouts.warnings:
        await asyncio.sleep(0.01)
    assert case.rollouts.warnings == [f"a: {reason}; what is served of it stays as it was"]
    await case.until(s0=("one", 100.0))
    # Any change of the file tries again.
    case.refusal = None
    case.rollouts.follow(plan_of(a="x/two"))
    assert case.rollouts.warnings == []
    id = f"s{case.count}"
    await case.until(**{"s0": ("one", 100.0), id: ("two", 0.0)})
    case.ready(id)
    await case.until(**{id: ("two", 100.0)})


async def test_a_later_change_takes_the_place_of_one_that_is_under_way():
    case = Case(plan_of(a="x/one"))
    case.rollouts.follow(plan_of(a="x/two"))
    await case.until(s0=("one", 100.0), s1=("two", 0.0))
    case.rollouts.follow(plan_of(a="x/three"))
    await case.until(s0=("one", 100.0), s2=("three", 0.0))
    case.ready("s2")
    await case.until(s2=("three", 100.0))
    case.rollouts.follow(plan_of(a="x/four"))
    case.rollouts.follow(plan_of(a="x/three"))
    await case.until(s2=("three", 100.0))


async def test_requests_are_divided_as_the_file_says_once_all_versions_are_ready():
    case = Case(plan_of(a={"x/one": 60.0, "x/two": 40.0}))
    assert case.weights() == {"s0": ("one", 100.0), "s1": ("two", 0.0)}
    case.rollouts.begin()
    assert case.weights() == {"s0": ("one", 60.0), "s1": ("two", 40.0)}
    case.rollouts.follow(plan_of(a={"x/one": 1.0, "x/two": 99.0}))
    await case.until(s0=("one", 1.0), s1=("two", 99.0))
    case.rollouts.follow(plan_of(a={"x/two": 90.0, "x/three": 10.0}))
    await case.until(s0=("one", 1.0), s1=("two", 99.0), s2=("three", 0.0))
    case.ready("s2")
    await case.until(s1=("two", 90.0), s2=("three", 10.0))
    case.rollouts.follow(plan_of(a="x/three"))
    await case.until(s2=("three", 100.0))


async def test_a_version_whose_vectors_have_another_length_gets_no_part_of_the_requests():
    case = Case(plan_of(a="x/one"))
    case.rollouts.follow(plan_of(a={"x/one": 70.0, "x/two": 30.0}))
    await case.until(s0=("one", 100.0), s1=("two", 0.0))
    case.ready("s1", VECTORS[:, :2])
    await case.until(s0=("one", 70.0), s1=("two", 0.0))
    [warning] = case.rollouts.warnings
    assert warning.startswith("a: vectors of the version two have 2 dimensions, those of one 4: it gets only requests")
    case.rollouts.follow(plan_of(a="x/two"))
    await case.until(s1=("two", 100.0))
    assert case.rollouts.warnings == []


async def test_a_check_of_a_version_does_not_compare_it_with_another_one():
    case = Case(plan_of(a="x/one"))
    case.rollouts.follow(plan_of(a="x/two"))
    await case.until(s0=("one", 100.0), s1=("two", 0.0))
    registry = case.servers.registry
    registry.failed(registry.upstreams["s1"], ProbeError("it does not answer yet"))
    registry.answered(registry.upstreams["s1"], -VECTORS[:, :2])
    await case.until(s1=("two", 100.0))
