"""The servers in front of which a worker's CPU time is measured."""

import asyncio

import grpc
import grpc.aio
import pytest

from tritonembed_manager.router.data.request import read_answer
from tritonembed_manager.tune.loadgen.load import METHOD, encode_request
from tritonembed_perf.scripts.hop_cpu import answer, cpu_seconds, envoys_floor, served


@pytest.mark.parametrize("sentences", [1, 3])
def test_the_answer_is_one_that_a_worker_forwards(sentences: int) -> None:
    assert read_answer(answer(sentences), sentences) == 50 * sentences


def test_the_floor_forwards_to_the_server() -> None:
    async def ask(address: str) -> bytes:
        async with grpc.aio.insecure_channel(address) as channel:
            found: bytes = await channel.unary_unary(METHOD, None, None)(encode_request(["a", "b"]), timeout=60)
            return found

    with served() as (target, _), served(target) as (floor, pid):
        assert asyncio.run(ask(floor)) == answer(2)
        assert cpu_seconds(pid) > 0


def test_envoys_floor_forwards_to_the_server() -> None:
    with served() as (target, _), envoys_floor(target) as (floor, pid), grpc.insecure_channel(floor) as channel:
        assert channel.unary_unary(METHOD)(encode_request(["a", "b"]), timeout=60) == answer(2)
        assert cpu_seconds(pid) > 0
