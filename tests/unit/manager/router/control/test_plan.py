"""Replicas as servers on GPUs, and the ports of these servers."""

import socket

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.plan import plan_servers
from tritonembed_manager.server.machine import HeldPorts, hold_port
from tritonembed_manager.server.settings import RenderSettings

CPU = RenderSettings(model="m", device="cpu")
CUDA = RenderSettings(model="m", device="cuda", vllm={"gpu_memory_utilization": 0.8})


def shape(plans):
    """Per server: replicas, GPUs, replicas per GPU, memory share of a replica."""
    return [(plan.replicas, plan.gpus, plan.render.replicas, plan.render.gpu_memory_share()) for plan in plans]


def test_a_cpu_has_one_server_with_all_replicas_unless_more_are_requested():
    assert [plan.replicas for plan in plan_servers(CPU, num_replicas=3)] == [3]
    assert [plan.replicas for plan in plan_servers(CPU, num_replicas=3, servers=2)] == [2, 1]
    assert plan_servers(CPU, num_replicas=3, servers=2)[0].render.replicas == 2


def test_one_gpu_has_one_server_whose_replicas_share_its_memory():
    assert shape(plan_servers(CUDA, num_replicas=2)) == [(2, (0,), 2, 0.4)]


def test_dedicated_gives_each_server_gpus_of_its_own():
    assert shape(plan_servers(CUDA, num_replicas=5, num_gpus=2)) == [(3, (0,), 3, 0.2667), (2, (1,), 2, 0.4)]
    assert shape(plan_servers(CUDA, num_replicas=4, num_gpus=4, servers=2)) == [
        (2, (0, 1), 1, 0.8),
        (2, (2, 3), 1, 0.8),
    ]


def test_shared_spreads_each_server_over_all_gpus_and_divides_their_memory():
    plans = plan_servers(CUDA, num_replicas=4, num_gpus=1, assignment="shared", servers=2)
    assert shape(plans) == [(2, (0,), 2, 0.2)] * 2
    plans = plan_servers(CUDA, num_replicas=4, num_gpus=2, assignment="shared", servers=2)
    assert shape(plans) == [(2, (0, 1), 1, 0.4)] * 2


def test_a_server_sees_its_own_gpus_under_numbers_from_0_on():
    plan = plan_servers(CUDA, num_replicas=2, num_gpus=2)[1]
    assert plan.render.gpus == (0,)
    assert plan.visible_devices(None) == "1"
    assert plan.visible_devices("GPU-a,GPU-b") == "GPU-b"
    with pytest.raises(StartError, match="CUDA_VISIBLE_DEVICES shows 1 GPU"):
        plan.visible_devices("5")
    assert plan_servers(CPU, num_replicas=1)[0].visible_devices("0") is None


def test_tensor_parallel_replicas_take_groups_of_gpus():
    base = RenderSettings(model="m", device="cuda", tensor_parallel_size=2)
    plans = plan_servers(base, num_replicas=2, num_gpus=4)
    assert [(plan.gpus, plan.render.gpu_groups()) for plan in plans] == [((0, 1), [[0, 1]]), ((2, 3), [[0, 1]])]


@pytest.mark.parametrize(
    ("base", "numbers", "words"),
    [
        (CPU, {"num_replicas": 1, "servers": 2}, "--servers 2 is more than --num-replicas 1"),
        (CUDA, {"num_replicas": 2, "num_gpus": 4}, "--num-replicas 2 leaves 2 of --num-gpus 4 without work"),
        (CUDA, {"num_replicas": 2, "servers": 2}, "--servers 2 does not divide the GPUs"),
        (CUDA, {"num_replicas": 3, "num_gpus": 2, "servers": 1}, "3 replicas cannot be spread evenly over 2 GPUs"),
        (CUDA, {"num_replicas": 3, "servers": 2, "assignment": "shared"}, "--gpu-assignment shared: "),
        (
            RenderSettings(model="m", device="cuda", tensor_parallel_size=2),
            {"num_replicas": 2, "num_gpus": 3},
            "--tensor-parallel-size 2 does not divide --num-gpus 3",
        ),
    ],
)
def test_contradicting_numbers_are_one_line(base, numbers, words):
    with pytest.raises(StartError) as caught:
        plan_servers(base, **numbers)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


class Holder:
    closed = False

    def close(self):
        self.closed = True


def test_ports_in_use_and_those_of_the_manager_are_skipped():
    busy = {101, 104}
    held = HeldPorts("localhost", 100, 4, avoid=[102], hold=lambda _, port: None if port in busy else Holder())
    assert (held.ports, held.skipped) == ([100, 103, 105, 106], [101, 102, 104])


def test_too_few_free_ports_are_one_line_and_none_is_kept():
    holders = []
    with pytest.raises(StartError, match="there are no 3 free ports from 65534 on"):
        HeldPorts("127.0.0.1", 65534, 3, hold=lambda *_: holders.append(Holder()) or holders[-1])
    assert [holder.closed for holder in holders] == [True, True]


def test_a_held_port_is_free_for_a_server_and_for_nobody_else():
    def listener(port):
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        return server

    [port] = (held := HeldPorts("127.0.0.1", 20000, 1)).ports
    for _life in range(2):
        assert hold_port("127.0.0.1", port) is None
        with listener(port), socket.create_connection(("127.0.0.1", port)):
            assert hold_port("127.0.0.1", port) is None
    held.close()
