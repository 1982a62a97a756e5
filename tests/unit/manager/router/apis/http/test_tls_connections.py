"""The limits of HTTP connections over TLS."""

from types import SimpleNamespace

from tests.unit.manager.router.settings import http_limits

from tritonembed_manager.router.apis.http.connections import Connections


class Transport:
    def __init__(self, unsent):
        self.unsent = unsent
        self.aborted = False

    def get_extra_info(self, _name):
        return ("127.0.0.1", 1)

    def get_write_buffer_size(self):
        return self.unsent

    def abort(self):
        self.aborted = True


def test_encrypted_answers_that_a_client_does_not_read_close_its_connection():
    clock = SimpleNamespace(now=0.0)
    connections = Connections(http_limits(receive_timeout=5.0), clock=lambda: clock.now)
    # asyncio encrypts at once, so the bytes wait below.
    plain, encrypted = Transport(0), Transport(1000)
    connections.made("a", plain)
    connections.below("a", encrypted)
    connections.has_request("a")
    for clock.now in (0.0, 4.0):
        connections.look()
        assert not plain.aborted
    clock.now = 5.0
    connections.look()
    assert plain.aborted
