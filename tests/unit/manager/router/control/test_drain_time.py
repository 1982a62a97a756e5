"""How --drain-timeout is divided."""

import pytest

from tritonembed_manager.router.control.settings import DrainTime


@pytest.mark.parametrize("launches", [False, True])
@pytest.mark.parametrize("timeout", [0.2, 1.0, 5.0, 30.0, 600.0])
def test_the_parts_are_all_of_it_and_most_is_for_the_work(timeout, launches):
    time = DrainTime.of(timeout, launches=launches)
    assert time.work + time.closing + time.ending == pytest.approx(timeout)
    assert time.work > 0.4 * timeout
    assert 0 < time.closing < time.work
    assert (0 < time.killing < time.ending) == launches


def test_a_long_time_is_for_the_work_alone():
    assert DrainTime.of(30, launches=True) == DrainTime(work=22, closing=3, ending=5)
    assert DrainTime.of(30, launches=False) == DrainTime(work=27, closing=3, ending=0)
    assert DrainTime.of(600, launches=True).work == 592
