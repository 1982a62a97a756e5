"""From the options of `serve` to its settings: defaults of the machine, and what contradicts what."""

from typing import Any

import typer

from tritonembed_manager import engine_arguments
from tritonembed_manager.errors import StartError
from tritonembed_manager.serve.control.discovery import ServersDns, ServersFile, parse_servers
from tritonembed_manager.serve.control.health import HealthSettings
from tritonembed_manager.serve.control.plan import plan_servers
from tritonembed_manager.serve.control.restarts import RestartLimits
from tritonembed_manager.serve.control.serve_options import GPU_PARAMETERS, LAUNCH_PARAMETERS
from tritonembed_manager.serve.control.settings import AttachSettings, LaunchSettings, ServeSettings
from tritonembed_manager.settings import (
    RenderSettings,
    model_reference,
    resolve_device,
    resolve_reference,
    resolve_tokenizer_instances,
)

NAME_WITHOUT_A_MODEL = "embedding"
_ATTACHING = ("server", "servers_file", "servers_dns")


def resolve(context: typer.Context) -> ServeSettings:
    """The settings. Raises StartError, in one line, for options that don't go together."""
    given = context.params
    attaching = next((name for name in _ATTACHING if given[name]), None)
    model = given["model"]
    return ServeSettings(
        model=model or NAME_WITHOUT_A_MODEL,
        attach=_attach(context, attaching) if attaching else None,
        launch=_launch(context) if model and not attaching else None,
        host=given["host"],
        port=given["port"],
        http_port=given["http_port"],
        workers=given["workers"],
        policy=given["load_balancing"].value,
        health=HealthSettings(given["health_interval"], given["health_timeout"]),
        forward_timeout=given["forward_timeout"],
        startup_timeout=given["startup_timeout"],
        drain_timeout=given["drain_timeout"],
        max_in_flight=given["max_in_flight"],
        max_in_flight_per_server=given["max_in_flight_per_server"],
        log_format=given["log_format"].value,
    )


def _attach(context: typer.Context, attaching: str) -> AttachSettings:
    given = context.params
    option = _names(context)[attaching]
    for name in _on_command_line(context):
        if name in LAUNCH_PARAMETERS:
            raise StartError(f"{_names(context)[name]} is for servers that are launched; {option} attaches to others")
    if context.args:
        raise StartError(f"{context.args[0]} is for servers that are launched; {option} attaches to others")
    name = given["servers_dns"]
    if name:
        parse_servers([name], "--servers-dns")
    return AttachSettings(
        servers=parse_servers(given["server"] or (), "--server"),
        file=ServersFile(given["servers_file"]) if given["servers_file"] else None,
        dns=ServersDns(name) if name else None,
    )


def _launch(context: typer.Context) -> LaunchSettings:
    given = context.params
    device = resolve_device(given["device"])
    if device == "cpu":
        for name in _on_command_line(context):
            if name in GPU_PARAMETERS:
                raise StartError(f"{_names(context)[name]} needs --device cuda")
    own = [option for parameter in context.command.params for option in parameter.opts]
    vllm: dict[str, Any] = engine_arguments.parse(context.args, own_options=own)
    base = RenderSettings(
        model=model_reference(given["model"]),
        device=device,
        tokenizer_instances=resolve_tokenizer_instances(given["tokenizer_instances"], device),
        tensor_parallel_size=given["tensor_parallel_size"],
        max_batch_tokens=given["max_batch_tokens"],
        reference=resolve_reference(given["reference"], given["no_reference"]),
        deterministic=given["deterministic"],
        executor=given["executor"],
        queue_limits=given["queue_limits"],
        vllm={**vllm, "gpu_memory_utilization": given["gpu_memory_utilization"]} if device == "cuda" else vllm,
    )
    plans = plan_servers(
        base,
        num_replicas=given["num_replicas"],
        num_gpus=given["num_gpus"],
        assignment=given["gpu_assignment"].value,
        servers=given["servers"],
    )
    return LaunchSettings(
        plans=plans,
        host=given["replica_host"],
        start_port=given["start_port"],
        tritonserver=given["tritonserver"],
        mps=given["mps"],
        work_dir=given["work_dir"],
        limits=RestartLimits(limit=given["max_restarts"], window=given["restart_window"]),
        log_verbose=given["log_verbose"],
    )


def _on_command_line(context: typer.Context) -> list[str]:
    """The parameters that were given there; variables may be meant for other commands."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]


def _names(context: typer.Context) -> dict[str, str]:
    return {parameter.name or "": parameter.opts[0] for parameter in context.command.params if parameter.opts}
