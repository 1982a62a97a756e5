"""The typer command `tritonembed-manager tune`. It imports its implementation only when it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tritonembed_manager.commands import options
from tritonembed_manager.commands.options import with_options
from tritonembed_manager.errors import one_line_errors
from tritonembed_manager.server.signals import interruptible
from tritonembed_manager.server.vllm_arguments import missing_model

if TYPE_CHECKING:
    from tritonembed_manager.server.settings import RenderSettings


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """The options, in the order of `--help`. Lists are still text."""

    model: options.Model
    load: Annotated[
        list[str] | None,
        typer.Option(
            None,
            help="Tokens x sentences in a request @ requests at once, such as 50x64@32; several count alike. "
            "By default 50x64@96 on a GPU, 50x16@8 without one.",
        ),
    ]
    tokenizer_instances: Annotated[
        str | None,
        typer.Option(
            None,
            "--tokenizer-instances",
            "--workers",
            help="Numbers of tokenizer instances to try; by default 1,2,4,8 with a GPU, 1,2 without.",
        ),
    ]
    replicas: Annotated[
        str | None,
        typer.Option(None, help="Embedder replicas per GPU to try; by default 1,2,3, without a GPU 1,2."),
    ]
    max_batch_tokens: Annotated[
        str | None,
        typer.Option(
            None,
            help="Tokens in one batch to try; by default 8192,16384,32768, without a GPU half, once and twice the "
            "default.",
        ),
    ]
    second_load: Annotated[
        str | None,
        typer.Option(None, help="The load on which the choice has to beat the defaults; by default of another shape."),
    ]
    seconds: Annotated[float, typer.Option(3.0, min=0.2, max=600, help="Seconds per run; there are three runs.")]
    budget_minutes: Annotated[float, typer.Option(30.0, min=0.5, help="For the search and the check together.")]
    device: options.Device
    gpus: options.Gpus
    tensor_parallel_size: options.TensorParallelSize
    executor: options.Executor
    tritonserver: options.Tritonserver
    startup_timeout: options.StartupTimeout
    force: options.Force


@with_options
def tune(context: typer.Context, out: options.OutFolder, given: TuneOptions) -> None:
    """Choose tokenizer instances, replicas and batch budget by measuring, and write the repository."""
    with one_line_errors(), interruptible():
        from tritonembed_manager.tune.output import out_folder
        from tritonembed_manager.tune.plan import TuneSettings
        from tritonembed_manager.tune.run import run_tune
        from tritonembed_manager.tune.server import ServerOptions

        options.check_out_folder(context, out)
        if given.model is None:
            raise missing_model(context)
        # Check the folder before vLLM's parser runs, which takes seconds.
        with out_folder(out, given.force):
            run_tune(
                TuneSettings(
                    out=out,
                    settings=_shared_settings(context, given.model, given),
                    server=ServerOptions(given.startup_timeout, given.tritonserver),
                    tokenizer_instances=given.tokenizer_instances,
                    replicas=given.replicas,
                    max_batch_tokens=given.max_batch_tokens,
                    loads=given.load or (),
                    second_load=given.second_load,
                    seconds=given.seconds,
                    budget_minutes=given.budget_minutes,
                    force=given.force,
                )
            )


def _shared_settings(context: typer.Context, model: str, given: TuneOptions) -> "RenderSettings":
    """The settings that all candidates share. The others have the defaults of `render`."""
    from tritonembed_manager.server import settings
    from tritonembed_manager.server import vllm_arguments as engine_arguments

    device = settings.resolve_device(given.device)
    return settings.RenderSettings(
        model=settings.model_reference(model),
        device=device,
        tokenizer_instances=settings.resolve_tokenizer_instances(None, device),
        gpus=settings.parse_gpus(given.gpus),
        tensor_parallel_size=given.tensor_parallel_size,
        executor=given.executor,
        vllm=engine_arguments.parse(context.args, own_options=engine_arguments.own_options(context)),
    )
