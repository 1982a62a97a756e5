"""Hedging by a real manager: a server that is slow for a moment delays no interactive request.

The servers are fakes whose latency a test sets.
"""

import urllib.request

from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving

from tritonembed import EmbeddingClient

NEVER_S = 3600.0
LATE_S = 0.05
FOR_TWO = 40
"""Requests that allow two second tries."""


def test_an_interactive_request_at_a_slow_server_is_answered_by_an_idle_one() -> None:
    with (
        fake_triton() as slow,
        fake_triton() as idle,
        serving(
            "--server", slow.address, "--server", idle.address, f"--hedge-after={LATE_S}", "--health-interval=3600"
        ) as manager,
        EmbeddingClient(manager.target) as client,
    ):
        for _ in range(FOR_TWO):
            client.embed(["a text"], priority="interactive", timeout=30)
        slow.latency = NEVER_S
        before = len(slow.requests)
        # In turn, so one of the two goes to the slow server first.
        for _ in range(2):
            client.embed(["a text"], priority="interactive", timeout=30)
        assert len(slow.requests) == before + 1
        manager.until(lambda: slow.cancelled == 1, 20)
        url = f"http://127.0.0.1:{manager.http_port}/metrics"

        def won() -> bool:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return 'tritonembed_hedges_total{outcome="won"} 1.0' in answer.read().decode()

        manager.until(won, 20)
        assert manager.states() == ["ready", "ready"]
