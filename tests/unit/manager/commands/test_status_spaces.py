"""The embedding space in `status`."""

from tritonembed_manager.commands.status import _spaces


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
