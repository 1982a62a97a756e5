"""The errors name unusable ports before anything starts."""

import socket

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import check_ports


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port_is_named_with_its_option(taken, host):
    with pytest.raises(StartError, match=f"--http-port: port {taken} is taken"):
        check_ports(host, {"--http-port": taken})


def test_a_port_given_twice_is_named_with_both_options():
    with pytest.raises(StartError, match="--port and --http-port are both 8000"):
        check_ports("127.0.0.1", {"--port": 8000, "--http-port": 8000})


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(StartError, match=f"--host: {host} is not an address of this machine"):
        check_ports(host, {"--port": 50051})


def test_a_port_is_checked_on_its_own_address(taken):
    check_ports("127.0.0.2", {"--port": taken})
    with pytest.raises(StartError, match=f"--metrics-port: port {taken} is taken"):
        check_ports("127.0.0.2", {"--metrics-port": taken}, {"--metrics-port": "127.0.0.1"})
    with pytest.raises(StartError, match=r"--metrics-host: 192\.0\.2\.1 is not an address of this machine"):
        check_ports("127.0.0.2", {"--metrics-port": taken}, {"--metrics-port": "192.0.2.1"})


def test_free_ports_pass_and_are_left_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    check_ports("127.0.0.1", {"--port": free})
    check_ports("127.0.0.1", {"--port": free})
