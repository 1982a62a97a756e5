"""The options of `tritonembed-bench perf-analyzer`, and what it does from start to end."""

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed_perf.failures import BenchError, one_line_errors
from tritonembed_perf.output import make_folder, write_report

INTERRUPTED = 130


def perf_analyzer(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Folder or hub's name of the model that is served.")],
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            help="Name in perf/scenarios or a YAML file; repeatable.",
            show_default="concurrency, request-rate",
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="host:port of a running Triton; by default one is started.")
    ] = None,
    manager: Annotated[
        str | None, typer.Option("--manager", help="host:port of a running manager; by default one is started.")
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option("--perf-analyzer", help="The program; by default on PATH, else from a tritonclient wheel."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for JSON and charts.")] = None,
) -> None:
    """Measure with NVIDIA's perf_analyzer: texts of exact length, scenarios of perf/scenarios.

    What follows `--` are options for the servers that are started, such as --replicas 2.
    """
    with one_line_errors():
        from tritonembed_perf.perf_analyzer.scenarios import load_scenarios

        scenarios = load_scenarios(scenario or [])
        make_folder("--out", out)
        _run(model, scenarios, {"triton": server, "manager": manager}, program, out, context.args)


def _run(
    model: str,
    scenarios: Sequence[Any],
    given: dict[str, str | None],
    program_path: Path | None,
    out: Path | None,
    arguments: Sequence[str],
) -> None:
    from tritonembed_perf.perf_analyzer.binary import find_program
    from tritonembed_perf.perf_analyzer.report import as_json, plot, show
    from tritonembed_perf.perf_analyzer.runs import Point
    from tritonembed_perf.perf_analyzer.scenarios import TARGETS
    from tritonembed_perf.perf_analyzer.targets import check_targets, reach
    from tritonembed_perf.run.corpus import WordTexts
    from tritonembed_perf.run.environment import describe_environment, machine_line, typed_command
    from tritonembed_perf.run.target import read_tokenizer

    files, tokenizer = read_tokenizer(model)
    words = WordTexts(tokenizer)
    check_targets(scenarios, given, files, words)
    program = find_program(program_path)
    environment = describe_environment(typed_command())
    print(machine_line(environment["machine"]))
    points: dict[str, list[Point]] = {scenario.name: [] for scenario in scenarios}
    interrupted, failure = False, None
    try:
        for target in TARGETS:
            wanted = [scenario for scenario in scenarios if target in scenario.targets]
            if wanted:
                with reach(target, given[target], model, arguments) as address:
                    for scenario in wanted:
                        _measure(program, address, target, scenario, words, points[scenario.name])
    except KeyboardInterrupt:
        interrupted = True
    except BenchError as error:
        # What was measured before it is worth showing.
        failure = error
    measured = [scenario for scenario in scenarios if points[scenario.name]]
    for scenario in measured:
        show(scenario, points[scenario.name])
        if out is not None:
            plot(out, scenario, points[scenario.name])
    if out is not None and (measured or failure is None):
        results = [as_json(scenario, points[scenario.name]) for scenario in scenarios]
        report = {**environment, "interrupted": interrupted, "scenarios": results}
        write_report(out / "perf-analyzer.json", report)
    if failure is not None:
        raise failure
    if interrupted:
        print("interrupted: what is above is all that was measured")
        raise typer.Exit(INTERRUPTED)


def _measure(program: Any, address: str, target: str, scenario: Any, words: Any, points: list[Any]) -> None:
    from tritonembed_perf.perf_analyzer.runs import command_line, run_point, write_input

    with tempfile.TemporaryDirectory() as folder:
        for shape in scenario.shapes:
            path = Path(folder) / f"{shape.name}.json"
            write_input(path, words, shape)
            shown = False
            for value in scenario.values:
                command = command_line(program.path, address, path, scenario, shape, value)
                if not shown:
                    words_of = [path.name if word == str(path) else word for word in command[1:]]
                    print(shlex.join([program.path.name, *words_of]), flush=True)
                    shown = True
                points.append(run_point(program, command, scenario, target, shape, value))
