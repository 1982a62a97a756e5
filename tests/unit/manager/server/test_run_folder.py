"""A manager's temporary folder and its servers' shared memory: which of them are removed, and when."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.run_folder import (
    LOCK,
    clear_leftovers,
    is_plain,
    make_private,
    new_region_prefix,
    plain,
    regions,
    remove_regions,
    run_folder,
    warning,
    work_folder,
)

HOLD = """
import subprocess, sys, time
from tritonembed_manager.server.run_folder import run_folder
with run_folder() as run:
    (run.path / "server-0").mkdir()
    child = None
    if len(sys.argv) > 1:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[run.lock])
    print(run.path, open(run.path / ".lock").read(), child.pid if child else 0, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The only folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def shm(tmp_path):
    """A folder in place of /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def start(*arguments):
    """Starts a manager that holds a folder. Returns its process, the folder, its regions' prefix, its child's pid."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, *arguments], stdout=subprocess.PIPE, text=True)
    folder, root, child = process.stdout.readline().split()
    return process, Path(folder), root, int(child)


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_folder_is_private_and_removed_at_the_end(temporary):
    with run_folder() as run:
        assert run.path.parent == temporary
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert run.home().stat().st_mode & 0o777 == 0o700
        assert list(run.home().iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_the_next_start_removes_a_killed_managers_leftovers_and_nothing_else(temporary, shm):
    process, folder, root, _ = start()
    other, living, other_root, _ = start()
    for name in (f"{root}_a_region", f"{other_root}_b_region", "tritonembed_1_00000000_c_region", "else"):
        (shm / name).touch()
    try:
        assert clear_leftovers(temporary, shm) == 0
        kill(process)
        assert folder.exists()
        assert clear_leftovers(temporary, shm) == 1
        assert not folder.exists()
        assert living.exists()
        assert f"{root}_a_region" not in os.listdir(shm)
        assert len(os.listdir(shm)) == 3
    finally:
        kill(process)
        kill(other)


def test_files_that_a_killed_managers_server_still_uses_stay(temporary):
    process, folder, _, child = start("with a child")
    kill(process)
    assert clear_leftovers(temporary) == 0
    assert folder.exists()
    os.kill(child, 9)
    until = time.monotonic() + 60
    while not clear_leftovers(temporary) and time.monotonic() < until:
        time.sleep(0.01)
    assert not folder.exists()


def test_two_managers_that_start_at_once_leave_each_other_alone(temporary):
    dead = [start() for _ in range(3)]
    for process, *_ in dead:
        kill(process)
    both = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    folders = [Path(process.stdout.readline().split()[0]) for process in both]
    try:
        assert sorted(temporary.iterdir()) == sorted(folders)
        assert all((folder / LOCK).exists() for folder in folders)
    finally:
        for process in both:
            kill(process)


def open_to_others(folder, outside):
    folder.mkdir()
    folder.chmod(0o755)
    (folder / LOCK).touch()


def a_link(folder, outside):
    folder.symlink_to(outside)


def with_a_linked_lock(folder, outside):
    folder.mkdir(mode=0o700)
    (folder / LOCK).symlink_to(outside / LOCK)


def without_a_lock(folder, outside):
    folder.mkdir(mode=0o700)


def test_another_users_folder_is_never_touched(temporary, monkeypatch):
    (temporary / "tritonembed-x").mkdir(mode=0o700)
    (temporary / "tritonembed-x" / LOCK).touch()
    # Only root could change the owner, so the test changes this process's user instead.
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert clear_leftovers(temporary) == 0
    assert (temporary / "tritonembed-x" / LOCK).exists()


@pytest.mark.parametrize("make", [open_to_others, a_link, with_a_linked_lock, without_a_lock])
def test_a_foreign_folder_is_never_touched(temporary, shm, make):
    (shm / LOCK).write_text("tritonembed_1_00000000")
    make(temporary / "tritonembed-x", shm)
    assert clear_leftovers(temporary) == 0
    assert (temporary / "tritonembed-x").is_dir()
    assert (shm / LOCK).exists()


def test_a_lock_file_with_anything_else_in_it_removes_no_region(temporary, shm):
    (shm / "tritonembed_1_00000000_x").touch()
    for index, text in enumerate(["", "tritonembed", "tritonembed_1_", "tritonembed_1_00000000_x\n*", "\0\xff" * 40]):
        folder = temporary / f"tritonembed-{index}"
        folder.mkdir(mode=0o700)
        (folder / LOCK).write_text(text)
    assert clear_leftovers(temporary, shm) == 5
    assert len(os.listdir(shm)) == 1


@pytest.mark.parametrize(
    "name", ["a b", "a;b", "$(touch x)", "a'b", 'a"b', "a\nb", "a*", "a:b", "a\\b", "ä", "a#b", "~a"]
)
def test_a_path_that_a_shell_would_split_gets_a_link(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "links").mkdir()
    assert not is_plain(tmp_path / name)
    link = plain(tmp_path / name, tmp_path / "links")
    assert is_plain(link)
    assert link.resolve() == tmp_path / name
    assert plain(tmp_path / name, tmp_path / "links") == link
    said = subprocess.run(["bash", "-c", f"echo {link}"], capture_output=True, text=True, check=True).stdout
    assert said == f"{link}\n"


def test_a_plain_path_is_used_unchanged(tmp_path):
    assert plain(tmp_path, tmp_path / "links") == tmp_path


def test_a_tmpdir_with_a_space_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    with run_folder() as run:
        assert is_plain(run.path)


def test_without_a_usable_folder_the_start_fails_in_one_line(monkeypatch):
    monkeypatch.setattr("tritonembed_manager.server.run_folder._parents", list)
    with pytest.raises(StartError, match="no folder for temporary files"), run_folder():
        pass


def test_a_chosen_folder_is_made_private(temporary):
    with run_folder() as run:
        chosen = temporary / "a" / "work dir"
        work = work_folder(chosen, run)
        assert work.resolve() == chosen.resolve()
        assert is_plain(work)
        assert chosen.stat().st_mode & 0o777 == 0o700
        assert work_folder(None, run) == run.path


@pytest.mark.parametrize(("mode", "warned"), [(0o700, False), (0o755, False), (0o775, True), (0o777, True)])
def test_a_chosen_folder_that_others_can_write_to_causes_a_warning(tmp_path, mode, warned):
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(mode)
    assert (warning(tmp_path / "work") is not None) == warned
    assert warning(None) is None


def test_a_servers_regions_are_removed_and_those_of_others_stay(tmp_path):
    prefix, other = new_region_prefix(), new_region_prefix()
    for name in (f"{prefix}a", f"{prefix}b", f"{other}a", "unrelated"):
        (tmp_path / name).touch()
    assert remove_regions(prefix, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{other}a", "unrelated"])
    assert remove_regions(prefix, tmp_path) == 0


def test_no_prefix_is_the_start_of_another():
    prefixes = {new_region_prefix() for _ in range(100)}
    assert len(prefixes) == 100
    assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)


def test_an_empty_prefix_which_would_match_everything_is_refused(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="empty prefix"):
        regions("", tmp_path)


def test_a_machine_without_the_folder_has_no_regions(tmp_path):
    assert regions("tritonembed_", tmp_path / "none") == []


def test_regions_become_private_and_those_of_others_stay_unchanged(tmp_path):
    for name in ("tritonembed_1_a_x", "tritonembed_2_a_x"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    make_private("tritonembed_1_", tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"tritonembed_1_a_x": 0o600, "tritonembed_2_a_x": 0o644}
