"""Triton is asked seldom whether a client is gone."""

from tritonembed_engine.stub.abandonment import EVERY_SECONDS, Abandonment


def test_triton_is_asked_once_per_period_and_not_at_once() -> None:
    now, asked, gone = 10.0, 0, False

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return gone

    is_abandoned = Abandonment(ask, lambda: now)
    assert not is_abandoned()
    assert asked == 0
    now += EVERY_SECONDS
    assert not is_abandoned()
    assert not is_abandoned()
    assert asked == 1
    gone = True
    now += EVERY_SECONDS
    assert is_abandoned()
    assert asked == 2
