"""A worker: the process that serves requests. `python -m tritonembed_manager.serve.worker`, started by `serve`.

worker_config.py describes its command line and what it and its parent tell each other.
"""

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Sequence

from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.worker_config import WorkerConfig
from tritonembed_manager.serve.worker_life import EXIT_ALONE, Worker
from tritonembed_manager.serve.worker_link import Link

_GC_THRESHOLDS = 10_000, 20, 20
"""Requests leave few cycles; looking for them all the time costs latency."""


async def serve(control_fd: int, table_fd: int) -> int:
    """A worker on these descriptors; its exit code."""
    link = await Link.open(control_fd)
    first = await link.hear()
    if first is None:
        return EXIT_ALONE
    worker = Worker(WorkerConfig.from_json(first), LoadTable(table_fd), link)
    # The terminal sends it to everyone; the parent says when to drain. SIGTERM is for this one alone.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.drain)
    # What is there now stays: it need not be looked at again and again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return await worker.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tritonembed_manager.serve.worker")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--table-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return asyncio.run(serve(options.control_fd, options.table_fd))


if __name__ == "__main__":
    sys.exit(main())
