"""The settings of Arctic Inference's published benchmark of its embedding server.

They are the arguments of its `benchmark/embedding/run_benchmark.sh`, as its README gives them for either GPU. Lengths
are exact here; there a text of length n is the word "hello" n - 4 times, and n - 2 tokens are counted for it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What of a load is published. replicas: how many of its server's replicas ran."""

    requests: int
    prompt_length: int
    concurrency: int
    replicas: int
    batch_sizes: tuple[int, ...] = (1, 16, 64)
    distribution: str = "fixed"


PRESETS = {
    "h200-long": Preset(requests=1024, prompt_length=512, concurrency=16, replicas=4),
    "h200-short": Preset(requests=10_240, prompt_length=50, concurrency=1024, replicas=32),
    "a10g-long": Preset(requests=1024, prompt_length=512, concurrency=16, replicas=2),
    "a10g-short": Preset(requests=4096, prompt_length=50, concurrency=256, replicas=8),
}
