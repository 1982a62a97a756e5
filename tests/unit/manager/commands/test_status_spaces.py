"""The embedding space in `status`."""

from tritonembed_manager.commands.status import _qualities, _spaces


def servers(*spaces):
    return [{"id": f"host{number}:8001", "space": space} for number, space in enumerate(spaces)]


def test_one_space_is_named_once_and_several_with_their_servers():
    assert _spaces(servers("aa-float32", "aa-float32")) == ["embedding space aa-float32"]
    assert _spaces(servers("aa-float32", "aa-16bit", "aa-float32")) == [
        "embedding space aa-float32: host0:8001, host2:8001",
        "embedding space aa-16bit: host1:8001",
    ]


def test_unknown_spaces_are_left_out():
    assert _spaces([*servers(""), {"id": "of an older manager"}]) == []


def test_what_int8_keeps_is_told_once_per_space_and_not_at_all_in_other_precisions():
    assert _qualities([*servers("aa-float32"), {"id": "of an older manager", "space": "aa-int8"}]) == []
    rows = [(0.98306, "aa-int8"), (0.9991, "bb-int8"), (0.9812, "aa-int8"), (None, "aa-16bit")]
    assert _qualities([{"space": space, "quantization_quality": quality} for quality, space in rows]) == [
        "aa-int8 keeps 0.9812 of the ten nearest of the calibration texts",
        "bb-int8 keeps 0.9991 of the ten nearest of the calibration texts",
    ]
