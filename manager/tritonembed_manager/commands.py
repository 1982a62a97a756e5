"""The commands as typer declares them. What they do is imported when one runs, so that `--help` is quick."""

# ruff: noqa: ARG001 - typer takes options from parameters; those that `render` and `replica` share are read from the context.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonembed_manager import options
from tritonembed_manager.errors import StartError
from tritonembed_manager.interrupts import abandonable_start, interruptible
from tritonembed_manager.one_line import one_line_errors as _one_line_errors
from tritonembed_manager.serve.control.serve_command import serve
from tritonembed_manager.serve.control.status_command import status
from tritonembed_manager.tune.command import tune
from tritonembed_manager.verify import verify

if TYPE_CHECKING:
    from tritonembed_manager.settings import RenderSettings

# Options that are not ours are vLLM's.
TAKES_VLLM_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
VLLM_EPILOG = (
    "Any further option is a vLLM engine argument, as `vllm serve` takes them: --dtype, --max-model-len, … "
    "(or TRITONEMBED_DTYPE, TRITONEMBED_MAX_MODEL_LEN, …)."
)

app = typer.Typer(
    name="tritonembed-manager",
    help="Runs Triton servers that embed text.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Runs Triton servers that embed text."""


@app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)
def render(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Annotated[str, typer.Option("--model", envvar="TRITONEMBED_MODEL", help=options.MODEL_HELP)],
    device: options.DeviceOption = None,
    tokenizer_instances: options.TokenizerInstances = None,
    replicas: options.Replicas = 1,
    gpus: options.Gpus = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    max_batch_tokens: options.MaxBatchTokens = None,
    executor: options.Executor = None,
    queue_limits: options.QueueLimits = None,
    reference: options.Reference = None,
    no_reference: options.NoReference = False,
    deterministic: options.Deterministic = False,
    force: options.Force = False,
) -> None:
    """Write a model repository for a model and a machine, for `tritonserver --model-repository`."""
    with _one_line_errors(), interruptible():
        if str(out).startswith("-"):
            raise StartError(f"the folder to write comes first, before {out}")
        from tritonembed_manager.model_check import check_model, is_folder
        from tritonembed_manager.repository import render as write

        settings = _render_settings(context)
        # A name on the hub is not asked for: a repository can be made where there is no network.
        if is_folder(settings.model):
            check_model(settings.model, None, settings.vllm.get("max_model_len"))
        write(out, settings, force=force)
        print(f"tritonserver --model-repository={out}")


@app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)
def replica(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", envvar="TRITONEMBED_MODEL", help=options.MODEL_HELP)] = None,
    model_repository: options.ModelRepository = None,
    host: options.Host = "0.0.0.0",
    port: options.Port = 50051,
    http_port: options.HttpPort = 8000,
    metrics_port: options.MetricsPort = 8002,
    device: options.DeviceOption = None,
    tokenizer_instances: options.TokenizerInstances = None,
    replicas: options.Replicas = 1,
    gpus: options.Gpus = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    max_batch_tokens: options.MaxBatchTokens = None,
    executor: options.Executor = None,
    queue_limits: options.QueueLimits = None,
    reference: options.Reference = None,
    no_reference: options.NoReference = False,
    deterministic: options.Deterministic = False,
    model_control_mode: options.ModelControlMode = options.ControlModeChoice.none,
    work_dir: options.WorkDir = None,
    tritonserver: options.Tritonserver = None,
    mps: options.Mps = True,
    startup_timeout: options.StartupTimeout = 1800.0,
    drain_timeout: options.DrainTimeout = 30.0,
    log_verbose: options.LogVerbose = False,
    disable_log_request: options.DisableLogRequest = False,
) -> None:
    """Run one Triton server in the foreground. READY is printed once an inference has succeeded."""
    with _one_line_errors(), abandonable_start():
        from tritonembed_manager.foreground import run_replica
        from tritonembed_manager.settings import ServerSettings

        server = ServerSettings(
            host=host,
            grpc_port=port,
            http_port=http_port,
            metrics_port=metrics_port,
            model_control_mode=model_control_mode.value,
            tritonserver=tritonserver,
            mps=mps,
            startup_timeout=startup_timeout,
            drain_timeout=drain_timeout,
            log_verbose=log_verbose,
            log_requests=not disable_log_request,
        )
        if model_repository is not None:
            _refuse_what_render_would_use(context)
            run_replica(server, repository=model_repository, work_dir=work_dir)
            return
        if model is None:
            raise StartError("--model is missing (or --model-repository, for one that is rendered already)")
        run_replica(server, render=_render_settings(context), work_dir=work_dir)


app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(serve)
app.command()(status)
app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(verify)
app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(tune)


def _render_settings(context: typer.Context) -> "RenderSettings":
    from tritonembed_manager import engine_arguments, settings

    given = context.params
    device = settings.resolve_device(given["device"])
    own = [option for parameter in context.command.params for option in parameter.opts]
    return settings.RenderSettings(
        model=settings.model_reference(given["model"]),
        device=device,
        tokenizer_instances=settings.resolve_tokenizer_instances(given["tokenizer_instances"], device),
        replicas=given["replicas"],
        gpus=settings.parse_gpus(given["gpus"]),
        tensor_parallel_size=given["tensor_parallel_size"],
        max_batch_tokens=given["max_batch_tokens"],
        executor=given["executor"],
        queue_limits=given["queue_limits"],
        reference=settings.resolve_reference(given["reference"], given["no_reference"]),
        deterministic=given["deterministic"],
        vllm=engine_arguments.parse(context.args, own_options=own),
    )


def _refuse_what_render_would_use(context: typer.Context) -> None:
    """A rendered repository is run as it is: an option that would have shaped it must not be ignored in silence."""
    shaping = (*options.RENDER_PARAMETERS, "model")
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in shaping and source is not None and source.name == "COMMANDLINE":
            raise StartError(f"{parameter.opts[0]} goes with rendering; --model-repository runs a repository as it is")
    if context.args:
        raise StartError(f"{context.args[0]} goes with rendering; --model-repository runs a repository as it is")
