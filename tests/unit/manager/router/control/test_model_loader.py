"""Which models are in memory with --max-loaded."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from tritonembed_manager.router.control.servers import LEAST_LOADED_S, ModelLoader


class Desk:
    """A loader of the models a, b and c, whose clock goes on when it sleeps."""

    def __init__(self, most):
        self.now = 1000.0
        self.events = []
        self.starting = set()
        self.release = asyncio.Event()
        self.release.set()
        self.loader = ModelLoader(
            "abc",
            most,
            load=lambda model: self.events.append(f"+{model}"),
            unload=self._unload,
            is_starting=lambda model: model in self.starting,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _unload(self, model):
        self.events.append(f"-{model}")
        await self.release.wait()

    async def _sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)

    async def until(self, *events):
        async def come():
            while self.events != list(events):
                await asyncio.sleep(0)

        await asyncio.wait_for(come(), 10)

    def use(self, *models):
        for model in models:
            self.now += 1
            self.loader.used(model)


@asynccontextmanager
async def desk(most):
    found = Desk(most)
    running = asyncio.ensure_future(found.loader.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_first_models_are_loaded_from_the_start():
    async with desk(2) as case:
        assert case.loader.loaded == ["a", "b"]
        case.loader.want("a")
        await asyncio.sleep(0)
        assert case.events == []


async def test_the_least_recently_used_model_makes_room():
    async with desk(2) as case:
        case.use("b", "a")
        case.loader.want("c")
        await case.until("-b", "+c")
        assert sorted(case.loader.loaded) == ["a", "c"]
        case.use("c", "a")
        case.loader.want("b")
        await case.until("-b", "+c", "-c", "+b")


async def test_a_model_that_is_unloaded_comes_back_after_the_one_that_it_made_room_for():
    async with desk(1) as case:
        case.release.clear()
        case.loader.want("b")
        await case.until("-a")
        case.loader.want("a")
        case.loader.want("a")
        case.release.set()
        await case.until("-a", "+b", "-b", "+a")
        assert case.loader.loaded == ["a"]


async def test_models_of_the_file_come_and_go():
    async with desk(2) as case:
        case.loader.forget("a")
        case.loader.offer("d")
        await case.until("+d")
        assert sorted(case.loader.loaded) == ["b", "d"]
        case.loader.offer("e")
        await asyncio.sleep(0)
        assert case.events == ["+d"]
        case.use("b")
        case.loader.want("e")
        await case.until("+d", "-d", "+e")


async def test_a_model_that_is_replaced_while_it_makes_room_is_loaded_again():
    async with desk(1) as case:
        case.release.clear()
        case.loader.want("b")
        await case.until("-a")
        case.loader.forget("a")
        case.loader.offer("a")
        case.release.set()
        await case.until("-a", "+b", "-b", "+a")


async def test_a_model_is_not_unloaded_before_requests_that_waited_for_it_reached_it():
    async with desk(1) as case:
        case.loader.want("b")
        await case.until("-a", "+b")
        case.starting.add("b")
        case.loader.want("c")
        for _ in range(1000):
            await asyncio.sleep(0)
        assert case.events == ["-a", "+b"]
        case.starting.clear()
        ready = case.now
        await case.until("-a", "+b", "-b", "+c")
        assert case.now - ready == pytest.approx(LEAST_LOADED_S, abs=0.2)
