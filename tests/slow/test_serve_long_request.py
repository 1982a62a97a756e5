"""A request that keeps a CPU server busy for longer than three checks, with the defaults of `serve`."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.serve import serving
from tests.integration.test_serve_busy import timed_embed

from tritonembed_perf.models import write_bert

LONG_S = 40.0
"""Three checks of ten seconds and the time between them."""


@pytest.mark.timeout(1800)
def test_a_request_of_most_of_a_minute_is_answered_and_others_meanwhile(tmp_path: Path) -> None:
    model = write_bert(tmp_path / "model", layers=12, hidden=768, heads=12, intermediate=3072)
    options = ["--num-replicas=1", "--no-reference", "--forward-timeout=900"]
    with serving("--model", model, "--device=cpu", *options) as manager:
        texts = ["word " * 500] * 24
        # The number of texts depends on this machine's speed.
        texts *= 1 + int(1.5 * LONG_S / timed_embed(manager, texts)[1])
        slowest = 0.0
        with ThreadPoolExecutor(1) as pool:
            huge = pool.submit(timed_embed, manager, texts)
            while not huge.done():
                count, seconds = timed_embed(manager, ["a small one"])
                assert count == 1
                slowest = max(slowest, seconds)
                time.sleep(1.0)
        vectors, huge_seconds = huge.result()
        assert vectors == len(texts)
        assert huge_seconds > LONG_S
        assert slowest < huge_seconds / 4
        assert manager.server("server-0")["restarts"] == 0
