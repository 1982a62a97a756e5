"""`python -m tritonembed_perf.engine_profile` on a CPU."""

import re
import subprocess
import sys

from tests.models import ModelShelf


def profile(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tritonembed_perf.engine_profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_time_of_a_batch_is_shown_by_operator(shelf: ModelShelf) -> None:
    done = profile(str(shelf("bert")), "--shape", "4x8")
    assert done.returncode == 0, done.stderr[-1000:]
    assert "executor: direct" in done.stdout
    assert re.search(r"^4 x 8: +\d+\.\d\d ms a batch$", done.stdout, re.MULTILINE)
    operators = re.findall(r"^ +(\d+\.\d\d) ms +(\d+\.\d) x  (\S+)$", done.stdout, re.MULTILINE)
    assert "aten::gelu" in [name for _, _, name in operators]
    times = [float(milliseconds) for milliseconds, _, _ in operators]
    assert times == sorted(times, reverse=True)


def test_a_shape_that_is_none_is_one_line() -> None:
    done = profile("/no/such/model", "--shape", "64")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("argument --shape: '64' is not SENTENCESxTOKENS")
