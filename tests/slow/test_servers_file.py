"""Real servers are replaced one after the other through --servers-file, under load, without errors."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.serve import Load, Serve, serving
from tests.integration.test_serve_attached import list_servers
from tests.models import ModelShelf


@pytest.fixture(scope="module")
def manager(shelf: ModelShelf) -> Iterator[Serve]:
    """Two servers with one replica each."""
    arguments = ["--model", shelf("bert"), "--device=cpu", "--servers=2", "--num-replicas=2", "--tokenizer-instances=1"]
    with serving(*arguments, "--health-interval=0.5") as started:
        yield started


def test_all_servers_are_replaced_under_load_through_the_servers_file(manager: Serve, tmp_path: Path) -> None:
    """A second manager attaches to the first manager's servers, which restart while they are not listed."""
    first, second = (server["address"] for server in manager.status()["servers"])
    listed = tmp_path / "servers"
    listed.write_text(f"{first}\n")
    with serving("--servers-file", listed, "--health-interval=0.5") as attached:

        def start_anew(server: str) -> None:
            restarts = manager.server(server)["restarts"]
            os.kill(manager.tritonservers()[server], signal.SIGKILL)
            manager.until(lambda: manager.server(server)["restarts"] > restarts)
            manager.until(lambda: manager.states() == ["ready", "ready"])

        with Load(attached.target, clients=16, rest_s=0.1) as load:
            load.answers(32)
            list_servers(attached, listed, first, second)
            list_servers(attached, listed, second)
            start_anew("server-0")
            list_servers(attached, listed, second, first)
            list_servers(attached, listed, first)
            start_anew("server-1")
            list_servers(attached, listed, first, second)
            load.answers(32)
        assert load.errors == []
