"""`tritonembed embed` against a server that is just starting."""

import threading
import time

from tests.unit.client.test_command import command  # noqa: F401 - a fixture


def test_embed_reports_that_it_waits_for_a_starting_server_and_then_goes_on(command, server):  # noqa: F811
    server.ready = server.has_servers = False
    becoming = threading.Timer(1.5, lambda: setattr(server, "ready", True))
    becoming.start()
    code, out, err = command("embed", "17")
    becoming.join()
    assert code == 0
    assert "17." in out
    assert err == f"tritonembed: 127.0.0.1:{server.port} is starting: waiting until it is ready\n"
    assert server.asked >= 3
    assert len(server.requests) == 1


def test_waiting_is_part_of_the_timeout(command, server):  # noqa: F811
    server.ready = server.has_servers = False
    began = time.monotonic()
    code, out, err = command("embed", "17", "--timeout", "1.2")
    assert 1.2 <= time.monotonic() - began < 20
    assert (code, out) == (1, "")
    said, failed = err.splitlines()
    assert "is starting: waiting" in said
    assert failed.endswith("is still starting; the timeout passed")
    assert server.requests == []


def test_embed_does_not_wait_for_a_server_that_is_ending_but_still_responds(command, server):  # noqa: F811
    server.ready = False
    code, _, err = command("embed", "17")
    assert (code, err) == (0, "")


def test_embed_does_not_wait_for_a_server_that_is_not_there(command):  # noqa: F811
    code, _, err = command("embed", "17", port=1)
    assert code == 1
    assert "starting" not in err
