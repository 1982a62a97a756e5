"""`tritonembed-manager verify`: are a model's vectors right on this machine?"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed_manager import options
from tritonembed_manager.errors import StartError
from tritonembed_manager.interrupts import interruptible
from tritonembed_manager.one_line import one_line_errors

WRONG = 1
"""Exit code for vectors that are not right."""

WriteReference = Annotated[
    Path | None,
    typer.Option(
        "--write-reference", dir_okay=False, resolve_path=True, help="Keep the reference, for --reference elsewhere."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The report as JSON.")]


def verify(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=options.MODEL_HELP)],
    device: options.DeviceOption = None,
    executor: options.Executor = None,
    reference: options.Reference = None,
    write_reference: WriteReference = None,
    as_json: Json = False,
    log_verbose: options.LogVerbose = False,
) -> None:
    """Hold a model's vectors against transformers in float32, or --reference, and print every case.

    Exit code 1 where they are wrong or the model can't be served.
    """
    with one_line_errors(), interruptible():
        from tritonembed_manager import engine_arguments, settings
        from tritonembed_manager.model_check import check_model

        name = settings.model_reference(model)
        own = [option for parameter in context.command.params for option in parameter.opts]
        vllm = engine_arguments.parse(context.args, own_options=own)
        check_model(name, vllm.get("revision"), vllm.get("max_model_len"))
        where = settings.resolve_device(device)
        if where == "cuda":
            vllm.setdefault("gpu_memory_utilization", 0.3)
        engine: dict[str, Any] = {"executor": executor.value if executor else "auto"}
        if reference is not None:
            engine["reference"] = str(reference)
        asked = {"settings": {"model": name, "vllm": vllm, "engine": engine}, "device": where}
        report = _run({**asked, "write": str(write_reference) if write_reference else None}, log_verbose)
        if "error" in report:
            raise StartError(report["error"])
        print(json.dumps(report, indent=2)) if as_json else _print(report)
        if not report["right"]:
            raise typer.Exit(WRONG)


def _run(asked: dict[str, Any], show_log: bool) -> dict[str, Any]:
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        arguments = json.dumps({**asked, "report": str(file)})
        command = [sys.executable, "-m", "tritonembed_engine.reference.verify", arguments]
        output = None if show_log else subprocess.PIPE
        with Console(stderr=True).status("embedding the reference's texts, with transformers and with vLLM"):
            ran = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(os.environ), check=False
            )
        if not file.exists():
            raise StartError(f"the model could not be verified (exit code {ran.returncode}); --log-verbose says why")
        report: dict[str, Any] = json.loads(file.read_text())
        return report


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "tokens", "cosine", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in report["rows"]:
        right = row["distance"] <= report["allowed"]
        table.add_row(row["case"], str(row["tokens"]), f"{1 - row['distance']:.7f}", "" if right else "WRONG")
    console = Console()
    console.print(table)
    least = 1 - max(row["distance"] for row in report["rows"])
    verdict = "right" if report["right"] else "WRONG"
    console.print(
        f"{verdict}: {report['executor']} executor, {report['dtype']}, {len(report['rows'])} cases against"
        f" {report['source']}: cosine {least:.7f} and more (at least {1 - report['allowed']:.4f} is asked),"
        f" {report['swaps']} of the nearest change places",
        soft_wrap=True,
    )
