"""`tritonembed-manager tune` as typer declares it; what it does is imported when it runs."""

# ruff: noqa: ARG001 - typer takes options from parameters; what shapes the servers is read from the context.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonembed_manager import options
from tritonembed_manager.interrupts import interruptible
from tritonembed_manager.one_line import one_line_errors

if TYPE_CHECKING:
    from tritonembed_manager.settings import RenderSettings

Tokenizers = Annotated[
    str | None,
    typer.Option(
        "--tokenizer-instances",
        "--workers",
        envvar=["TRITONEMBED_TOKENIZER_INSTANCES", "TRITONEMBED_WORKERS"],
        help="Numbers of tokenizer instances to try; by default 1,2,4,8 beside a GPU, 1,2 without one.",
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        "--replicas",
        envvar="TRITONEMBED_REPLICAS",
        help="Embedder replicas a GPU to try; by default 1,2,3, without a GPU 1,2.",
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        "--max-batch-tokens",
        envvar="TRITONEMBED_MAX_BATCH_TOKENS",
        help="Tokens in one batch to try; by default 8192,16384,32768, without a GPU half, once and twice the default.",
    ),
]
Loads = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        envvar="TRITONEMBED_LOAD",
        help="Tokens x sentences in a request @ requests at once, such as 50x64@32; several count alike. "
        "By default 50x64@96 on a GPU, 50x16@8 without one.",
    ),
]
SecondLoad = Annotated[
    str | None,
    typer.Option(
        "--second-load",
        envvar="TRITONEMBED_SECOND_LOAD",
        help="The load on which the choice has to beat the defaults; by default of another shape.",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds", envvar="TRITONEMBED_SECONDS", min=0.2, max=600, help="Of one run; each is done three times."
    ),
]
Budget = Annotated[
    float,
    typer.Option(
        "--budget-minutes",
        envvar="TRITONEMBED_BUDGET_MINUTES",
        min=0.5,
        help="The search stops in time for the check to end within this.",
    ),
]


def tune(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Annotated[str, typer.Option("--model", envvar="TRITONEMBED_MODEL", help=options.MODEL_HELP)],
    load: Loads = None,
    tokenizer_instances: Tokenizers = None,
    replicas: Replicas = None,
    max_batch_tokens: Budgets = None,
    second_load: SecondLoad = None,
    seconds: Seconds = 3.0,
    budget_minutes: Budget = 30.0,
    device: options.DeviceOption = None,
    gpus: options.Gpus = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    executor: options.Executor = None,
    tritonserver: options.Tritonserver = None,
    startup_timeout: options.StartupTimeout = 1800.0,
    force: options.Force = False,
) -> None:
    """Choose tokenizer instances, replicas and batch budget by measuring, and write the repository."""
    with one_line_errors(), interruptible():
        from tritonembed_manager.tune.out_folder import out_folder
        from tritonembed_manager.tune.run import run_tune
        from tritonembed_manager.tune.server import ServerOptions
        from tritonembed_manager.tune.tune_options import TuneOptions

        # Before vLLM's parser, which takes seconds.
        with out_folder(out, force):
            run_tune(
                TuneOptions(
                    out=out,
                    settings=_shared_settings(context),
                    server=ServerOptions(startup_timeout, tritonserver),
                    tokenizer_instances=tokenizer_instances,
                    replicas=replicas,
                    max_batch_tokens=max_batch_tokens,
                    loads=load or (),
                    second_load=second_load,
                    seconds=seconds,
                    budget_minutes=budget_minutes,
                    force=force,
                )
            )


def _shared_settings(context: typer.Context) -> "RenderSettings":
    """What all candidates have in common; the rest as `render` has it by default."""
    from tritonembed_manager import engine_arguments, settings

    given = context.params
    device = settings.resolve_device(given["device"])
    own = [option for parameter in context.command.params for option in parameter.opts]
    return settings.RenderSettings(
        model=settings.model_reference(given["model"]),
        device=device,
        tokenizer_instances=settings.resolve_tokenizer_instances(None, device),
        gpus=settings.parse_gpus(given["gpus"]),
        tensor_parallel_size=given["tensor_parallel_size"],
        executor=given["executor"],
        vllm=engine_arguments.parse(context.args, own_options=own),
    )
