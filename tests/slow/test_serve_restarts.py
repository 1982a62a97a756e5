"""`tritonembed-manager serve` restarts a server whose python process is killed or hangs."""

import os
import signal
import time

import pytest
from tests.integration.serve import Load, Serve
from tests.integration.test_serve_busy import embed


@pytest.mark.timeout(600)
def test_a_stub_that_is_killed_costs_no_client_an_error_and_its_server_comes_back(two_servers: Serve) -> None:
    before = two_servers.server("server-1")["restarts"]
    with Load(two_servers.target) as load:
        load.answers(96)
        two_servers.until(two_servers.is_full)
        began = time.monotonic()
        os.kill(two_servers.stub("server-1", "embedder"), signal.SIGKILL)
        two_servers.until(lambda: two_servers.server("server-1")["restarts"] == before + 1)
        # Triton alone would take minutes to notice.
        assert time.monotonic() - began < 15
        load.answers(300)
    assert load.errors == []
    two_servers.until(lambda: two_servers.states() == ["ready", "ready"])


@pytest.mark.timeout(600)
def test_a_server_that_hangs_while_it_computes_is_restarted(busy: Serve) -> None:
    stub = busy.stub("server-0", "embedder")
    os.kill(stub, signal.SIGSTOP)
    busy.until(lambda: busy.server("server-0")["restarts"] == 1)
    busy.until(lambda: busy.states() == ["ready"])
    assert embed(busy, ["after it"]) == 1
