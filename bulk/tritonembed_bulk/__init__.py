"""`tritonembed bulk`: the vectors of large data sets, by a running fleet or by engines in Ray actors; resumable."""

from typing import Literal

Format = Literal["parquet", "npy"]
Device = Literal["auto", "cpu", "cuda"]
LogFormat = Literal["text", "json"]

PART_ROWS = 16384
"""Most rows of an output part: 50 MB of vectors with 768 dimensions. If a worker ends, a part is computed again."""
