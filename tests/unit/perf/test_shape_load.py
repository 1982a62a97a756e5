"""The short notation of loads."""

import pytest

from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.requests import parse_loads


def test_loads_are_tokens_sentences_and_concurrent_requests() -> None:
    loads = parse_loads("50x64@4, 512x1@16")
    assert loads == [LoadShape(50, 64, 4), LoadShape(512, 1, 16)]
    assert [str(load) for load in loads] == ["50x64@4", "512x1@16"]


@pytest.mark.parametrize("text", ["", "50", "50x64", "50@4", "ax1@1", "50x64@4,", "50x64@4@4", "0x1@1", "50x1@0"])
def test_anything_else_is_refused_with_what_was_typed(text: str) -> None:
    with pytest.raises(UsageError, match="--loads: "):
        parse_loads(text)
