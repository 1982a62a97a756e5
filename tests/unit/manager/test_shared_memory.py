"""Only a server's own regions are removed from /dev/shm."""

import pytest

from tritonembed_manager.shared_memory import new_region_prefix, regions, remove_regions


def test_a_servers_regions_go_and_those_of_others_stay(tmp_path):
    prefix, other = new_region_prefix(), new_region_prefix()
    for name in (f"{prefix}a", f"{prefix}b", f"{other}a", "unrelated"):
        (tmp_path / name).touch()
    assert remove_regions(prefix, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{other}a", "unrelated"])
    assert remove_regions(prefix, tmp_path) == 0


def test_prefixes_differ_and_none_begins_another():
    prefixes = {new_region_prefix() for _ in range(100)}
    assert len(prefixes) == 100
    assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)


def test_an_empty_prefix_which_would_match_everything_is_refused(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="empty prefix"):
        regions("", tmp_path)


def test_a_machine_without_the_folder_has_no_regions(tmp_path):
    assert regions("tritonembed_", tmp_path / "none") == []
