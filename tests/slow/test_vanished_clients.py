"""If a client's machine vanishes, its connections end, although no FIN ever arrives."""

import socket
import time

from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving

from tritonembed_perf.chaos import http2_attacks

PATIENCE_S = 100
"""gRPC sends a ping after a minute without a byte, and waits 20 s for its answer."""


def test_a_grpc_connection_whose_client_answers_no_ping_is_closed_within_two_minutes() -> None:
    with (
        fake_triton() as server,
        serving("--server", server.address) as manager,
        socket.create_connection(("127.0.0.1", manager.port)) as silent,
    ):
        began = time.monotonic()
        # The client opens a connection, and then answers nothing.
        silent.sendall(http2_attacks.opening())
        silent.settimeout(PATIENCE_S)
        while silent.recv(1 << 16):
            pass
        assert time.monotonic() - began < PATIENCE_S
        assert manager.serves()
