"""The steps of a start, as a server's log names them."""

import logging

from tritonembed_engine.stub import process
from tritonembed_perf.scripts.cold_start import steps


def test_each_step_that_a_replica_announces_is_one_without_its_numbers(caplog):
    with caplog.at_level(logging.WARNING):
        process.announce("reading the model's files")
        for number in range(3):
            process.announce(f"capturing CUDA graphs ({number} of 40)")
    log = "".join(f"tritonembed: embedder_0_0: {record.getMessage()}\n" for record in caplog.records)
    # The manager's own line of progress is no new step.
    log += "tritonembed-manager: still starting: capturing CUDA graphs (15 s)\n"
    assert steps(log) == ["reading the model's files", *["capturing CUDA graphs"] * 3]
