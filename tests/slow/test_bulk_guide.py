"""The commands of the guide to data sets run as written, with a small model in place of the hub's.

Not the one that needs a cluster and an object store.
"""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/bulk.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if "s3://" not in block]


@pytest.mark.timeout(600)
def test_the_commands_run_as_written(model: Path, tmp_path: Path) -> None:
    for name in ("texts", "sample"):
        texts = [f"some words of the text {number}" for number in range(40)]
        pq.write_table(pa.table({"id": range(40), "text": texts}), tmp_path / f"{name}.parquet")
    commands = [line for block in BLOCKS for line in block.splitlines() if line.startswith("tritonembed ")]
    assert len(commands) == 5
    for command in commands:
        shown = re.sub(r"BAAI/\S+", str(model), command).replace(
            "tritonembed", f"{Path(sys.executable).parent}/tritonembed", 1
        )
        done = subprocess.run(shown, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    for folder in ("vectors", "a", "b"):
        assert ds.dataset(tmp_path / folder).count_rows() == 40
