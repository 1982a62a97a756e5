"""`tritonembed-bench run` from start to end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tritonembed_perf.failures import BenchError, UsageError, end_interrupted, one_line_errors
from tritonembed_perf.reports import check_output, describe_environment, machine_line, typed_command, write_report
from tritonembed_perf.run.settings import Settings

if TYPE_CHECKING:
    from tritonembed_perf.run.measure import Row


def run(settings: Settings) -> None:
    """Measure a running server: closed loop, or open loop with --rate.

    Every answer is checked. Exit code 1: a wrong vector, or no answer at all. Ctrl-C shows what was measured so far.
    """
    with one_line_errors():
        settings.check()
        check_output("--json", settings.json_path)
        _run(settings)


def _run(settings: Settings) -> None:
    # Slow imports come once the options are known to be good.
    from tritonembed_manager.tune.loadgen.clients import Interrupt
    from tritonembed_perf.loadgen.target import find_target
    from tritonembed_perf.run.measure import ProgressBar, Texts, measure, prepare
    from tritonembed_perf.run.report import as_json, show_table
    from tritonembed_perf.run.server_use import ServerProcesses

    target = find_target(settings)
    texts = Texts(settings, target)
    most = target.served.max_batch_size
    for size in settings.sizes:
        if most and size > most:
            raise UsageError(f"--batch-sizes {size}: the server takes {most} a request")
    environment = describe_environment(typed_command())
    served = target.served
    print(f"{machine_line(environment['machine'])}\n{settings.address}: {served.model}, {served.description}")
    processes = ServerProcesses.find(settings.address)
    rows: list[Row] = []
    interrupt = Interrupt()
    try:
        for batch_size in settings.sizes:
            work = prepare(settings, target, texts.requests(batch_size))
            with ProgressBar(settings, batch_size) as bar:
                rows.append(measure(settings, batch_size, work, processes, bar, interrupt))
            if interrupt.happened:
                break
    except KeyboardInterrupt:
        interrupt.happened = True
    if interrupt.happened:
        # A batch size whose warm-up had not ended has no figures.
        rows = [row for row in rows if row.outcome.is_telling]
    show_table(rows, settings)
    report = {
        **environment,
        "server": {"model": served.model, "description": served.description},
        "settings": settings.as_json(),
        "interrupted": interrupt.happened,
        "rows": [as_json(row, settings) for row in rows],
    }
    write_report(settings.json_path, report)
    _finish(rows, interrupt.happened)


def _finish(rows: "Sequence[Row]", interrupted: bool) -> None:
    wrong = sum(row.outcome.part.wrong for row in rows)
    if wrong:
        raise BenchError(f"{wrong} answers were wrong")
    if interrupted:
        end_interrupted()
    silent = [row.batch_size for row in rows if not row.outcome.requests]
    if silent:
        raise BenchError(f"no request of {silent[0]} sentences was answered")
