"""Ports for servers that listen seconds later: free now, and outside of the kernel's ephemeral range."""

import socket
from pathlib import Path

import pytest

from tritonembed_perf import server as module
from tritonembed_perf.server import free_ports


def test_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_ports_are_outside_of_the_kernels_ephemeral_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GIVEN_AWAY", tmp_path / "range")
    (tmp_path / "range").write_text("20000\t60999\n")
    assert max(free_ports(50)) < 20_000


@pytest.mark.parametrize("given_away", ["1024\t65535\n", None])
def test_any_port_is_used_if_the_ephemeral_range_is_nearly_all_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_away: str | None
) -> None:
    monkeypatch.setattr(module, "_GIVEN_AWAY", tmp_path / "range")
    if given_away is not None:
        (tmp_path / "range").write_text(given_away)
    assert len(free_ports(3)) == 3


def test_a_taken_port_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_ports(2)
    monkeypatch.setattr(module, "_TRIES", 2)
    monkeypatch.setattr(module, "_CHANCE", type("Chosen", (), {"sample": lambda *_: free})())
    with socket.create_server(("127.0.0.1", free[0])):
        assert free_ports(1) == free[1:]
        with pytest.raises(OSError, match="fewer than 2 are free"):
            free_ports(2)
