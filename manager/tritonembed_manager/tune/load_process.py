"""`python -m tritonembed_manager.tune.load_process JOB_FILE`: runs loads, one JSON line a run.

A process of its own, leader of its session: whoever started it ends it and all its client processes in one stroke.
"""

import base64
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tritonembed_manager.tune.attempts import Run
from tritonembed_manager.tune.loads import LoadShape

REQUESTS_PER_PROCESS = 171
"""A client process keeps about so many requests in flight before its own CPU is the limit."""
CORES_PER_PROCESS = 4
MOST_PROCESSES = 6
WARM_UP_S = 1.0


@dataclass(frozen=True)
class LoadJob:
    """`runs` runs of each load in turn against the server at `target`, `seconds` each."""

    target: str
    loads: list[tuple[LoadShape, list[bytes]]]
    """Each with its requests, serialized."""
    runs: int
    seconds: float
    cores: int

    def to_json(self) -> str:
        """For the file."""
        loads = [
            [shape.tokens, shape.sentences, shape.at_once, [base64.b64encode(body).decode() for body in bodies]]
            for shape, bodies in self.loads
        ]
        fields = {"target": self.target, "runs": self.runs, "seconds": self.seconds, "cores": self.cores}
        return json.dumps({"loads": loads, **fields})

    @staticmethod
    def from_json(text: str) -> "LoadJob":
        """What `to_json` wrote."""
        fields = json.loads(text)
        loads = [
            (LoadShape(tokens, sentences, at_once), [base64.b64decode(body) for body in bodies])
            for tokens, sentences, at_once, bodies in fields.pop("loads")
        ]
        return LoadJob(loads=loads, **fields)


def client_processes(at_once: int, cores: int) -> int:
    """Enough processes that the clients are not the limit, and no more cores of the server's than needed."""
    wanted = max(-(-at_once // REQUESTS_PER_PROCESS), min(4, cores // CORES_PER_PROCESS), 1)
    return min(wanted, MOST_PROCESSES, at_once)


def main() -> None:
    """Run the job of the file. A line is {"load", "run"} with the figures, or {"load", "error"}, which is the last."""
    signal.signal(signal.SIGTERM, _end_all)
    job = LoadJob.from_json(Path(sys.argv[1]).read_text())
    for _ in range(job.runs):
        for shape, payloads in job.loads:
            answer = _run(job, shape, payloads)
            print(json.dumps({"load": str(shape), **answer}), flush=True)
            if "error" in answer:
                return


def _end_all(number: int, _: FrameType | None) -> None:
    """Our parent wants an end, or has died: the clients end with us. Not by SIGKILL, which their semaphores outlive."""
    signal.signal(number, signal.SIG_DFL)
    os.killpg(0, number)


def _run(job: LoadJob, shape: LoadShape, payloads: list[bytes]) -> dict[str, object]:
    from tritonembed_perf.load import Load, run_load

    processes = client_processes(shape.at_once, job.cores)
    outcome = run_load(Load(job.target, payloads, shape.at_once, processes, job.seconds, WARM_UP_S))
    if outcome.errors:
        said = ", ".join(f"{count} {code}" for code, count in sorted(outcome.errors.items()))
        return {"error": f"requests of {shape} failed: {said}"}
    if not outcome.requests:
        return {"error": f"no request of {shape} was answered within {job.seconds:g} s (--seconds)"}
    tokens = requests_per_second(outcome.latencies.tolist(), shape.at_once) * shape.sentences * shape.tokens
    return {"run": asdict(Run(tokens, outcome.percentile(50) * 1e3, outcome.percentile(99) * 1e3))}


def requests_per_second(latencies: Sequence[float], at_once: int) -> float:
    """The rate of a closed loop from its latencies in seconds (Little's law).

    A server answers in bursts, a batch at a time: counted in a short window, the requests would depend on how many
    bursts happen to end in it. Each client sends its next request at once, so that no time is lost between two.
    """
    return at_once / (sum(latencies) / len(latencies))


if __name__ == "__main__":
    main()
