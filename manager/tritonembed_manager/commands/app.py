"""The typer commands. Each imports its implementation only when it runs, so that `--help` is quick."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from tritonembed_manager.commands.doctor import doctor
from tritonembed_manager.commands.options import (
    Adapters,
    Force,
    ListenOptions,
    ModelRepository,
    Models,
    ModelsFile,
    OutFolder,
    RepositoryOptions,
    RunOptions,
    base_settings,
    check_out_folder,
    chosen_models,
    on_command_line,
    with_options,
)
from tritonembed_manager.commands.serve import serve
from tritonembed_manager.commands.status import status
from tritonembed_manager.commands.tune import tune
from tritonembed_manager.commands.verify import verify
from tritonembed_manager.errors import StartError, one_line_errors
from tritonembed_manager.server.signals import abandonable_start, interruptible
from tritonembed_manager.server.vllm_arguments import did_you_mean, missing_model, own_options

if TYPE_CHECKING:
    from tritonembed_manager.server.models_file import ModelEntry
    from tritonembed_manager.server.settings import RenderSettings

# Any option that is not ours is vLLM's.
TAKES_VLLM_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
VLLM_EPILOG = (
    "Any further option is a vLLM engine argument, as `vllm serve` takes them: --dtype, --max-model-len, … "
    "(or TRITONEMBED_DTYPE, TRITONEMBED_MAX_MODEL_LEN, …)."
)
_KEY_PREFIX = "te-"
_KEY_BYTES = 32
"""Random bytes of a key."""

app = typer.Typer(
    name="tritonembed-manager",
    help="Runs Triton servers that embed text.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tritonembed-manager {version('tritonembed')}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Runs Triton servers that embed text."""


@app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)
@with_options
def render(
    context: typer.Context,
    out: OutFolder,
    model: Models,
    models: ModelsFile,
    adapter: Adapters,
    repository: RepositoryOptions,
    force: Force,
) -> None:
    """Write a model repository for a model and a machine, for `tritonserver --model-repository`."""
    with one_line_errors(), interruptible():
        check_out_folder(context, out)
        entries, option = chosen_models(context, model, models, repository.task, adapter, fetch=False)
        if not entries:
            raise missing_model(context)
        from tritonembed_manager.server.repository import check_models, is_folder, tritonserver_line
        from tritonembed_manager.server.repository import render as write

        settings = _render_settings(context, entries, option, repository)
        # A name on the hub is not checked, so that a repository can be rendered without a network.
        check_models([one for one in settings if is_folder(one.model)])
        write(out, *settings, force=force)
        print(tritonserver_line(out))


@app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)
@with_options
def replica(
    context: typer.Context,
    model: Models,
    models: ModelsFile,
    adapter: Adapters,
    model_repository: ModelRepository,
    listen: ListenOptions,
    repository: RepositoryOptions,
    run: RunOptions,
) -> None:
    """Run one Triton server in the foreground. READY is printed once an inference has succeeded."""
    with one_line_errors(), abandonable_start():
        from tritonembed_manager.server.foreground import run_replica
        from tritonembed_manager.server.settings import ServerSettings

        server = ServerSettings(
            host=listen.host,
            grpc_port=listen.port,
            http_port=listen.http_port,
            metrics_port=listen.metrics_port,
            http_host=listen.http_host,
            metrics_host=listen.metrics_host,
            model_control_mode=run.model_control_mode,
            tritonserver=run.tritonserver,
            mps=run.mps,
            startup_timeout=run.startup_timeout,
            drain_timeout=run.drain_timeout,
            log_verbose=run.log_verbose,
            log_requests=not run.disable_log_request,
            triton_traces=run.triton_traces,
        )
        if model_repository is not None:
            _refuse_what_render_would_use(context)
            run_replica(server, repository=model_repository, work_dir=run.work_dir)
            return
        entries, option = chosen_models(context, model, models, repository.task, adapter, fetch=True)
        if not entries:
            raise missing_model(context, " (or --model-repository, for one that is rendered already)")
        settings = _render_settings(context, entries, option, repository)
        run_replica(server, models=settings, work_dir=run.work_dir)


@with_options
def key(
    expires: Annotated[
        str | None, typer.Option(None, help="The day after which it is refused, such as 2027-06-30 (UTC).")
    ],
) -> None:
    """Print a new key, which is shown only this once, and below it its entry for `keys:` of the tenants file."""
    import secrets
    from datetime import date
    from hashlib import sha256

    with one_line_errors():
        try:
            day = date.fromisoformat(expires) if expires else None
        except ValueError:
            raise StartError("--expires must be a day such as 2027-06-30") from None
        # The prefix lets scanners of source code recognise keys.
        made = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        print(made)
        print(f"- sha256: {sha256(made.encode()).hexdigest()}")
        if day is not None:
            print(f"  expires: {day}")


app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(serve)
app.command()(status)
app.command()(key)
app.command()(doctor)
app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(verify)
app.command(context_settings=TAKES_VLLM_ARGUMENTS, epilog=VLLM_EPILOG)(tune)


def _render_settings(
    context: typer.Context, entries: Sequence["ModelEntry"], option: str, options: RepositoryOptions
) -> list["RenderSettings"]:
    from tritonembed_manager.server import settings
    from tritonembed_manager.server import vllm_arguments as engine_arguments
    from tritonembed_manager.server.models_file import refuse_weights, render_settings

    refuse_weights(entries, option)
    device = settings.resolve_device(options.device)
    base = base_settings(
        options,
        entries[0].path,
        device,
        replicas=options.replicas,
        gpus=settings.parse_gpus(options.gpus),
        vllm=engine_arguments.parse(context.args, own_options=engine_arguments.own_options(context)),
    )
    return render_settings(base, entries, option)


def _refuse_what_render_would_use(context: typer.Context) -> None:
    """Raise StartError for an option that shapes a repository: a rendered repository runs unchanged."""
    shaping = {"model", "models", "adapter", *(field.name for field in fields(RepositoryOptions))}
    for name, given in on_command_line(context).items():
        if name in shaping:
            raise StartError(f"{given} goes with rendering; --model-repository runs a repository unchanged")
    if context.args:
        given, meant = context.args[0], did_you_mean(context.args[0], own_options(context))
        raise StartError(f"{given} goes with rendering; --model-repository runs a repository unchanged{meant}")
