"""`tritonembed-manager verify`: checks whether a model's vectors are right on this machine."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.commands import options
from tritonembed_manager.commands.options import with_options
from tritonembed_manager.errors import StartError, one_line_errors
from tritonembed_manager.server.signals import interruptible

STANDARD_ERROR = 2
"""The file descriptor."""

WRONG = 1
"""Exit code if vectors are wrong."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The options, in the order of `--help`."""

    device: options.Device
    executor: options.Executor
    reference: options.Reference
    quantization_quality: options.QuantizationQuality
    calibration: options.Calibration
    write_reference: Annotated[
        Path | None,
        typer.Option(
            None,
            envvar=[],
            dir_okay=False,
            resolve_path=True,
            help="Keep the reference, for --reference elsewhere.",
        ),
    ]
    json: Annotated[bool, typer.Option(False, envvar=[], help="The report as JSON.")]
    log_verbose: options.LogVerbose


@with_options
def verify(
    context: typer.Context, model: Annotated[str, typer.Argument(help=options.MODEL_HELP)], given: VerifyOptions
) -> None:
    """Hold a model's vectors against transformers in float32, or --reference, and print every case.

    A quantized model is right if enough of each text's ten nearest are the same as in float32. Exit code 1 if the
    vectors are wrong or the model can't be served.
    """
    with one_line_errors(), interruptible():
        from tritonembed_manager.server import settings
        from tritonembed_manager.server import vllm_arguments as engine_arguments
        from tritonembed_manager.server.repository import check_model

        if model.startswith("-"):
            raise StartError(f"the model comes first, before {model}")
        name = settings.model_reference(model)
        vllm = engine_arguments.parse(context.args, own_options=engine_arguments.own_options(context))
        check_model(name, vllm.get("revision"), vllm.get("max_model_len"))
        where = settings.resolve_device(given.device)
        if where == "cuda":
            vllm.setdefault("gpu_memory_utilization", 0.3)
        engine: dict[str, Any] = {"executor": given.executor or "auto"}
        if given.reference is not None:
            engine["reference"] = str(given.reference)
        if given.quantization_quality is not None:
            engine["quantization_quality"] = given.quantization_quality
        if given.calibration is not None:
            engine["calibration"] = str(given.calibration)
        asked = {"settings": {"model": name, "vllm": vllm, "engine": engine}, "device": where}
        write = str(given.write_reference) if given.write_reference else None
        report = _run({**asked, "write": write}, given.log_verbose)
        if "error" in report:
            raise StartError(report["error"])
        print(json.dumps(report, indent=2)) if given.json else _print(report)
        if not report["right"]:
            raise typer.Exit(WRONG)


def _run(asked: dict[str, Any], show_log: bool) -> dict[str, Any]:
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        arguments = json.dumps({**asked, "report": str(file)})
        command = module_command("tritonembed_engine.verify", arguments)
        # The report alone is on standard output.
        output = STANDARD_ERROR if show_log else subprocess.PIPE
        with Console(stderr=True).status("embedding the reference's texts, with transformers and with vLLM"):
            ran = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(os.environ), check=False
            )
        if not file.exists():
            code = ran.returncode
            raise StartError(f"the model could not be verified (exit code {code}); --log-verbose shows the reason")
        report: dict[str, Any] = json.loads(file.read_text())
        return report


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    of_scores, nearest = report["of_scores"], report["nearest"]
    table = Table("case", "tokens", "difference" if of_scores else "cosine", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in report["rows"]:
        right = nearest or row["distance"] <= report["allowed"]
        shown = row["distance"] if of_scores else 1 - row["distance"]
        table.add_row(row["case"], str(row["tokens"]), f"{shown:.7f}", "" if right else "WRONG")
    console = Console()
    console.print(table)
    most, allowed = max(row["distance"] for row in report["rows"]), report["allowed"]
    found = f"cosine {1 - most:.7f} and more (at least {1 - allowed:.4f} is asked)"
    found += f", {report['swaps']} neighbours in another order"
    if of_scores:
        found = f"scores differ by at most {most:.7f} standard deviations ({allowed:.4f} are allowed)"
    if nearest:
        found = f"{nearest['kept']:.4f} of the ten nearest among {nearest['texts']} texts are those of float32"
        found += f" (at least {nearest['asked']:g} is asked), cosine {1 - most:.7f} and more"
    verdict = "right" if report["right"] else "WRONG"
    computed = f"{report['quantization']} and {report['dtype']}" if report["quantization"] else report["dtype"]
    console.print(
        f"{verdict}: {report['executor']} executor, {computed}, {len(report['rows'])} cases against"
        f" {report['source']}: {found}",
        soft_wrap=True,
    )
