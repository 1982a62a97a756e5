"""CUDA_VISIBLE_DEVICES of one model instance."""

import json
from typing import Any

import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.stub.placement import visible_devices

UUIDS = "GPU-11111111-aaaa, GPU-22222222-bbbb,MIG-33333333-cccc"


def instance(kind: str, device: int = 0, name: str = "embedder_0") -> dict[str, str]:
    """What Triton gives to `initialize`."""
    return {"model_instance_kind": kind, "model_instance_device_id": str(device), "model_instance_name": name}


def config(groups: dict[str, list[int]] | None) -> dict[str, Any]:
    """The model's configuration as Triton gives it, with or without the parameter `devices`."""
    return {"parameters": {} if groups is None else {"devices": {"string_value": json.dumps(groups)}}}


@pytest.mark.parametrize("inherited", [None, "", "0,1", "GPU-11111111-aaaa"])
def test_an_instance_on_the_cpu_leaves_the_variable_alone(inherited: str | None) -> None:
    assert visible_devices(instance("CPU"), {}, inherited) is None


@pytest.mark.parametrize(
    ("inherited", "device", "expected"),
    [
        (None, 0, "0"),
        (None, 3, "3"),
        ("0,1,2", 1, "1"),
        ("2,5,7", 0, "2"),
        ("2,5,7", 2, "7"),
        (" 4 , 6 ,", 1, "6"),
        (UUIDS, 1, "GPU-22222222-bbbb"),
        (UUIDS, 2, "MIG-33333333-cccc"),
    ],
)
def test_an_instance_on_a_gpu_sees_the_entry_with_tritons_number(
    inherited: str | None, device: int, expected: str
) -> None:
    assert visible_devices(instance("GPU", device), {}, inherited) == expected


@pytest.mark.parametrize(("inherited", "device", "shown"), [("2,5", 2, 2), ("", 0, 0), (UUIDS, 3, 3)])
def test_a_gpu_hidden_by_the_variable_is_refused(inherited: str, device: int, shown: int) -> None:
    with pytest.raises(ModelError, match=f"needs GPU {device}, but CUDA_VISIBLE_DEVICES shows {shown} GPU"):
        visible_devices(instance("GPU", device), {}, inherited)


@pytest.mark.parametrize(
    ("name", "inherited", "expected"),
    [
        ("left", None, "0,1"),
        ("right_0", None, "2,3"),
        ("right_1", "4,5,6,7", "6,7"),
        ("left_0", UUIDS, "GPU-11111111-aaaa,GPU-22222222-bbbb"),
        ("big_gpu_group_12", None, "3,0"),
    ],
)
def test_a_tensor_parallel_instance_sees_the_gpus_of_its_group_in_their_order(
    name: str, inherited: str | None, expected: str
) -> None:
    groups = {"left": [0, 1], "right": [2, 3], "big_gpu_group": [3, 0]}
    assert visible_devices(instance("MODEL", name=name), config(groups), inherited) == expected


def test_a_group_whose_own_name_ends_in_a_number_is_found() -> None:
    groups = {"embedder_0": [0, 1], "embedder_1": [2, 3]}
    assert visible_devices(instance("MODEL", name="embedder_1"), config(groups), None) == "2,3"
    assert visible_devices(instance("MODEL", name="embedder_1_0"), config(groups), None) == "2,3"


@pytest.mark.parametrize("model_config", [{}, config(None)])
def test_a_tensor_parallel_instance_needs_the_parameter(model_config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="KIND_MODEL needs the parameter 'devices'"):
        visible_devices(instance("MODEL"), model_config, None)


def test_a_group_that_the_parameter_does_not_name_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="does not name the instance group 'right'"):
        visible_devices(instance("MODEL", name="right_0"), config({"left": [0]}), None)


def test_too_few_visible_gpus_for_a_group_are_refused() -> None:
    with pytest.raises(ModelError, match="needs GPU 1, but CUDA_VISIBLE_DEVICES shows 1 GPU"):
        visible_devices(instance("MODEL", name="left_0"), config({"left": [0, 1]}), "7")


@pytest.mark.parametrize("text", ["{left: [0]}", "[0, 1]", '{"left": 0}', '{"left": ["0"]}', '{"left": []}'])
def test_a_parameter_that_is_not_groups_of_gpus_is_refused_in_one_line(text: str) -> None:
    model_config = {"parameters": {"devices": {"string_value": text}}}
    with pytest.raises(ModelError, match="'devices'"):
        visible_devices(instance("MODEL", name="left_0"), model_config, None)
