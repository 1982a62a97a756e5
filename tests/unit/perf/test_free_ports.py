"""Ports for servers that listen seconds later: free now, and not the next that any program is given."""

import socket
from pathlib import Path

import pytest

from tritonembed_perf import server
from tritonembed_perf.server import free_ports


def test_they_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_the_kernel_gives_them_to_nobody_who_asks_for_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GIVEN_AWAY", tmp_path / "range")
    (tmp_path / "range").write_text("20000\t60999\n")
    assert max(free_ports(50)) < 20_000


@pytest.mark.parametrize("given_away", ["1024\t65535\n", None])
def test_where_it_gives_away_nearly_all_or_does_not_say_they_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_away: str | None
) -> None:
    monkeypatch.setattr(server, "_GIVEN_AWAY", tmp_path / "range")
    if given_away is not None:
        (tmp_path / "range").write_text(given_away)
    assert len(free_ports(3)) == 3


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_ports(2)
    monkeypatch.setattr(server, "_TRIES", 2)
    monkeypatch.setattr(server, "_CHANCE", type("Chosen", (), {"sample": lambda *_: free})())
    with socket.create_server(("127.0.0.1", free[0])):
        assert free_ports(1) == free[1:]
        with pytest.raises(OSError, match="fewer than 2 are free"):
            free_ports(2)
