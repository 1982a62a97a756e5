"""`tritonembed-manager doctor`: shows what this machine lacks, and the commands that mend it."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from tritonembed_manager.commands import options
from tritonembed_manager.errors import one_line_errors
from tritonembed_protocol.limits import ENDPOINT_HTTP_PORT, ENDPOINT_PORT

PROBLEM = 1
"""Exit code if there is a problem."""
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """The options, in the order of `--help`."""

    device: options.Device
    model: Annotated[str | None, typer.Option(None, help="Name on the Hugging Face hub, or a folder, which is read.")]
    attach: Annotated[bool, typer.Option(False, help="For a manager whose servers run elsewhere: no GPU, no Triton.")]
    host: Annotated[str, typer.Option("0.0.0.0", help="Address to listen on.")]
    port: Annotated[int, typer.Option(ENDPOINT_PORT, min=1, max=65535, help="gRPC port.")]
    http_port: Annotated[int, typer.Option(ENDPOINT_HTTP_PORT, min=1, max=65535, help="HTTP port.")]
    tritonserver: options.Tritonserver
    json: Annotated[bool, typer.Option(False, envvar=[], help="The checks as JSON.")]


@options.with_options
def doctor(given: DoctorOptions) -> None:
    """Check this machine, and print what is wrong and what mends it. Exit code 1 if something would not work."""
    with one_line_errors():
        from tritonembed_manager.server.doctor import Role, examine, gather

        role: Role = "manager" if given.attach else "server"
        machine = gather(
            device=given.device,
            role=role,
            host=given.host,
            ports={"--port": given.port, "--http-port": given.http_port},
            model=given.model,
            program=given.tritonserver,
        )
        checks = examine(machine, role)
        works = all(check.state != "problem" for check in checks)
        if given.json:
            print(json.dumps({"works": works, "checks": [asdict(check) for check in checks]}, indent=2))
        else:
            for check in checks:
                state = typer.style(f"{check.state:8}", fg=_COLOURS[check.state])
                typer.echo(f"{state} {check.name:17} {check.found}")
                if check.mend is not None:
                    typer.echo(f"{'':26} mend: {check.mend}")
        if not works:
            raise typer.Exit(PROBLEM)
