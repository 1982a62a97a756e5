"""Unreadable metrics of attached servers are one line in `status`."""

from tritonembed_manager.router.control.health import ScrapeWatch
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.interfaces import ServerState


def roster_of(*addresses, launched=False, state=ServerState.READY):
    registry = UpstreamRegistry(8, lambda: 0.0, lambda: None)
    for number, address in enumerate(addresses):
        upstream = registry.add(f"s{number}", f"s{number}:1", launched=launched, metrics_address=address)
        upstream.state = state
    return registry


async def read(address):
    return 1.0 if address == "good:1" else None


async def test_a_missing_scrape_is_one_line():
    watch = ScrapeWatch(roster_of("good:1", "bad:1", None), read)
    assert watch.warnings() == []
    await watch.look()
    [line] = watch.warnings()
    assert line.startswith("no metrics of s1, s2: ")
    assert "--metrics-host" in line


async def test_many_missing_scrapes_are_one_line_too():
    watch = ScrapeWatch(roster_of(*[None] * 7), read)
    await watch.look()
    [line] = watch.warnings()
    assert "s0, s1, s2, s3 and 3 more:" in line


async def test_there_is_no_warning_for_servers_that_are_launched_or_not_ready():
    for registry in (roster_of(None, launched=True), roster_of(None, state=ServerState.UNHEALTHY), roster_of("good:1")):
        watch = ScrapeWatch(registry, read)
        await watch.look()
        assert watch.warnings() == []
