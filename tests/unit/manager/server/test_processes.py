"""The family of a process: all its descendants, also in other sessions."""

import os
import subprocess
import sys
import time

import pytest

from tritonembed_manager.server.process import Process, family, process_table, read_process


def process(pid, parent=1, session=1, state="S", started=0):
    return Process(pid, "p", state, parent, session, started)


def table(*processes):
    return {entry.pid: entry for entry in processes}


def pids(found):
    return [entry.pid for entry in found]


def test_descendants_belong_to_the_family_also_in_a_session_of_their_own():
    everything = table(process(10, session=10), process(11, parent=10, session=11), process(12, parent=11, session=11))
    assert pids(family(10, everything)) == [10, 11, 12]


def test_a_member_of_the_session_belongs_to_the_family_after_its_parent_died():
    assert pids(family(10, table(process(11, parent=1, session=10), process(12, parent=1, session=9)))) == [11]


def test_a_process_seen_before_is_found_again_in_another_session():
    seen = process(11, parent=10, session=11, started=5)
    later = process(11, parent=1, session=11, started=5)
    assert pids(family(10, table(later), known=[seen])) == [11]


def test_a_later_process_with_the_same_pid_is_left_alone():
    seen = process(11, parent=10, session=11, started=5)
    stranger = process(11, parent=1, session=11, started=99)
    assert family(10, table(stranger), known=[seen]) == []


def test_zombies_count_as_ended():
    assert family(10, table(process(10, session=10, state="Z"))) == []


def test_a_name_with_spaces_and_parentheses_is_read(tmp_path):
    script = tmp_path / "a) b (c"
    script.symlink_to(sys.executable)
    child = subprocess.Popen([str(script), "-c", "input()"], stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while (found := read_process(child.pid)) is None or found.name != "a) b (c":
            assert time.monotonic() < until
        assert found.parent == os.getpid()
        assert found.alive
    finally:
        child.kill()
        child.communicate()
    assert read_process(child.pid) is None


def test_the_table_holds_this_process():
    me = process_table()[os.getpid()]
    assert (me.parent, me.session) == (os.getppid(), os.getsid(0))


@pytest.mark.parametrize("state", ["Z", "X"])
def test_only_dead_states_are_dead(state):
    assert not process(1, state=state).alive
    assert process(1, state="D").alive
