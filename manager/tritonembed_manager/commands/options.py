"""The options that several commands share, and how options are declared: each once, with its default.

A parameter of a command can be a dataclass, whose fields are options then. An option is declared as `Annotated[type,
typer.Option(default, help=…)]`. Its name and its variable come from the name of the field: `drain_timeout` is
--drain-timeout and TRITONEMBED_DRAIN_TIMEOUT, unless typer.Option names others. A field's own default (`= 5`) replaces
the declared default in this command.
"""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo, ParameterInfo

from tritonembed_manager.errors import StartError
from tritonembed_manager.server import machine
from tritonembed_manager.server.settings import (
    LOOPBACK,
    ControlMode,
    RenderSettings,
    model_reference,
    resolve_reference,
    resolve_tokenizer_instances,
)
from tritonembed_manager.server.vllm_arguments import did_you_mean, own_options, variable
from tritonembed_protocol.limits import SERVER_HTTP_PORT, SERVER_METRICS_PORT, SERVER_PORT
from tritonembed_protocol.served import Task


def with_options(command: Callable[..., Any], *, variables: bool = True) -> Callable[..., Any]:
    """The function that typer registers: it takes each option by its name, and calls `command` with its dataclasses.

    variables: whether options are variables, too.
    """
    hints = {name: hint for name, hint in _hints(command).items() if name != "return"}
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    members = {name: [field.name for field in fields(kind)] for name, kind in groups.items()}
    parameters = []
    for name, hint in hints.items():
        if name in groups:
            own = _hints(hint)
            parameters += [
                _parameter(field.name, own[field.name], variables, field.default) for field in fields(groups[name])
            ]
        else:
            parameters.append(_parameter(name, hint, variables))

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        built = {name: groups[name](**{field: given.pop(field) for field in members[name]}) for name in groups}
        return command(**given, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def marked(options: type, mark: object) -> list[str]:
    """The fields of a dataclass of options that are `Annotated` with this mark."""
    return [name for name, hint in _hints(options).items() if mark in get_args(hint)[1:]]


def on_command_line(context: typer.Context) -> dict[str, str]:
    """The options given on the command line, by parameter.

    Variables don't count, because they may be meant for other commands.
    """
    names = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name: names[name] for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def _hints(described: Any) -> dict[str, Any]:
    return get_type_hints(described, include_extras=True)


def _parameter(name: str, hint: Any, variables: bool, default: Any = MISSING) -> inspect.Parameter:
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    infos = [copy(note) for note in notes if isinstance(note, ParameterInfo)]
    info = infos[-1] if infos else inspect.Parameter.empty
    if isinstance(info, OptionInfo):
        info.default = info.default if default is MISSING else default
        info.param_decls = info.param_decls or (f"--{name.replace('_', '-')}",)
        if info.envvar is None and variables:
            info.envvar = [variable(option.partition("/")[0]) for option in info.param_decls]
        info.envvar = info.envvar or None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


if TYPE_CHECKING:
    from tritonembed_manager.commands.serve import ServeOptions
    from tritonembed_manager.server.models_file import ModelEntry

MODEL_HELP = "Name on the Hugging Face hub, or a folder."

OutFolder = Annotated[Path, typer.Argument(help="The folder to write.")]
Model = Annotated[str | None, typer.Option(None, help=MODEL_HELP)]
Models = Annotated[
    list[str] | None,
    typer.Option(
        None,
        "--model",
        help=f"{MODEL_HELP} Repeatable: the first model is `embedding` for clients, each further one is NAME=PATH.",
    ),
]
ModelsFile = Annotated[
    Path | None,
    typer.Option(
        None,
        "--models",
        help="Instead of --model: a file (YAML) of several models and their settings. `serve` watches it.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        None,
        "--adapter",
        help="A LoRA adapter as a model of its own, NAME=BASE:PATH: its name for clients, that of its model "
        "(`embedding` for the first), and a folder that peft saved or a name on the hub. Repeatable; with attached "
        "servers NAME=BASE.",
    ),
]
Device = Annotated[
    machine.Device | None, typer.Option(None, help="Device of the model; by default the one that this machine has.")
]
Gpus = Annotated[str | None, typer.Option(None, help="GPU numbers such as 0,1; by default every GPU.")]
TensorParallelSize = Annotated[
    int, typer.Option(RenderSettings.tensor_parallel_size, min=1, help="GPUs that share one replica.")
]
MaxBatchTokens = Annotated[int | None, typer.Option(None, min=1, help="Tokens in one batch.")]
Executor = Annotated[
    Literal["auto", "direct", "openvino", "scheduler", "transformers"] | None,
    typer.Option(None, help="Executor of the model; by default auto."),
]
QueueLimits = Annotated[
    bool | None,
    typer.Option(
        None,
        "--queue-limits/--no-queue-limits",
        help="Bounded queues, priorities and deadlines in Triton. Without them its batcher does not hold up bursts. "
        "On by default with a GPU; off for `serve`, which bounds requests itself.",
        show_default=False,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        None,
        exists=True,
        dir_okay=False,
        resolve_path=True,
        help="Compare the vectors with these of sentence-transformers (.npz: texts, vectors) instead of "
        "transformers in float32.",
    ),
]
NoReference = Annotated[bool, typer.Option(False, help="Serve without comparing the vectors with a reference.")]
ModelTask = Annotated[
    Task | None,
    typer.Option(
        None,
        help="What the model does: embed, or score (rerankers and classifiers); by default as in its files. "
        "`render` reads no files of a model on the hub.",
    ),
]
InstructionTemplate = Annotated[
    str | None,
    typer.Option(
        None,
        help="Prompt in which {instruction} stands for the request parameter of that name; by default as the model's "
        "own prompts or its name show.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        False,
        help="The same text gives the same bits, whatever else is served: one sentence per batch. Costs throughput.",
    ),
]
CacheBytes = Annotated[
    int,
    typer.Option(
        RenderSettings.cache_bytes,
        min=0,
        help="Bytes per replica for the vectors of repeated texts, such as 268435456; 0 keeps none.",
    ),
]
QuantizationQuality = Annotated[
    float | None,
    typer.Option(
        None,
        min=0.01,
        max=1.0,
        help="With --quantization int8: the share of the calibration texts' ten nearest neighbours that must be the "
        "same as in float32; by default 0.98.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        None,
        exists=True,
        dir_okay=False,
        resolve_path=True,
        help="With --quantization int8: texts to calibrate and judge it with, one per line; by default the project's.",
    ),
]
Force = Annotated[bool, typer.Option(False, help="Write into a folder that is not empty, too.")]

ModelRepository = Annotated[
    Path | None,
    typer.Option(None, exists=True, file_okay=False, resolve_path=True, help="Run this rendered repository unchanged."),
]
Host = Annotated[str, typer.Option("0.0.0.0", help="Address to listen on with gRPC.")]
Port = Annotated[int, typer.Option(SERVER_PORT, min=1, max=65535, help="gRPC port.")]
HttpPort = Annotated[int, typer.Option(SERVER_HTTP_PORT, min=1, max=65535, help="HTTP port.")]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        None,
        file_okay=False,
        resolve_path=True,
        help="Folder for the rendered repository; by default a temporary one.",
    ),
]
Tritonserver = Annotated[
    Path | None,
    typer.Option(
        None, help="The server's program; by default on PATH, in /opt/tritonserver, or in the nvidia-pytriton wheel."
    ),
]
Mps = Annotated[
    bool,
    typer.Option(
        True, "--mps/--no-mps", help="NVIDIA's MPS, if it is installed: replicas that share a GPU run at the same time."
    ),
]
StartupTimeout = Annotated[float, typer.Option(1800.0, min=1, help="Seconds until READY.")]
DrainTimeout = Annotated[float, typer.Option(30.0, min=1, help="Seconds for requests in flight at the end.")]
TritonTraces = Annotated[
    str | None,
    typer.Option(
        None,
        "--triton-traces",
        metavar="URL",
        help="Send Triton's own spans of every request, with the queue and the compute time of each model, to this "
        "OTLP/HTTP endpoint, such as http://collector:4318/v1/traces.",
    ),
]
LogVerbose = Annotated[bool, typer.Option(False, help="Show all of Triton's log.")]


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """Options that shape a model repository, in addition to the model and vLLM's arguments."""

    device: Device
    tokenizer_instances: Annotated[
        int | None,
        typer.Option(
            None,
            "--tokenizer-instances",
            "--workers",
            min=1,
            help="Tokenizer instances on the CPU; by default 8 with a GPU, 2 without, at most one per core.",
        ),
    ]
    replicas: Annotated[int, typer.Option(RenderSettings.replicas, min=1, help="Embedder replicas per GPU.")]
    gpus: Gpus
    tensor_parallel_size: TensorParallelSize
    max_batch_tokens: MaxBatchTokens
    executor: Executor
    queue_limits: QueueLimits
    reference: Reference
    no_reference: NoReference
    quantization_quality: QuantizationQuality
    calibration: Calibration
    deterministic: Deterministic
    cache_bytes: CacheBytes
    instruction_template: InstructionTemplate
    task: ModelTask


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where one server listens."""

    host: Host
    port: Port
    http_port: HttpPort
    http_host: Annotated[str, typer.Option(LOOPBACK, help="Address of Triton's own HTTP, which has no access control.")]
    metrics_host: Annotated[
        str,
        typer.Option(
            LOOPBACK,
            help="Address of the metrics; a manager or a Prometheus on another host needs one that it can reach.",
        ),
    ]
    metrics_port: Annotated[int, typer.Option(SERVER_METRICS_PORT, min=1, max=65535, help="Prometheus port.")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one server runs."""

    model_control_mode: Annotated[
        ControlMode,
        typer.Option(
            "none", help="Triton's: none, poll, or explicit (load and unload by request; all are loaded at the start)."
        ),
    ]
    work_dir: WorkDir
    tritonserver: Tritonserver
    mps: Mps
    startup_timeout: StartupTimeout
    drain_timeout: DrainTimeout
    log_verbose: LogVerbose
    triton_traces: TritonTraces
    disable_log_request: Annotated[
        bool,
        typer.Option(
            False,
            help="With --log-verbose: leave out Triton's lines per request. Without it requests are never logged.",
        ),
    ]


def check_out_folder(context: typer.Context, out: Path) -> None:
    """Raise StartError if an unknown option stands in the place of the folder."""
    if str(out).startswith("-"):
        meant = did_you_mean(str(out), own_options(context))
        raise StartError(f"the folder to write comes first, before {out}{meant}")


def given_models(context: typer.Context, models: Sequence[str] | None) -> list[str]:
    """The values of --model. The variable holds one value: typer would split it at spaces."""
    source = context.get_parameter_source("model")
    if models and source is not None and source.name == "ENVIRONMENT":
        return [os.environ[variable("--model")]]
    return list(models or ())


def chosen_models(
    context: typer.Context,
    models: Sequence[str] | None,
    file: Path | None,
    task: Task | None,
    adapters: Sequence[str] | None,
    *,
    fetch: bool,
) -> tuple[list["ModelEntry"], str]:
    """The models, an empty list if none is given, and the option that they come from. Raises StartError.

    task: the value of `--task`. adapters: the values of `--adapter`. fetch: whether to fetch the files of a model on
    the hub, to find what it does.
    """
    from tritonembed_manager.server import models_file
    from tritonembed_manager.server.models_file import with_adapters

    given = given_models(context, models)
    if file is None:
        found = models_file.with_tasks(models_file.parse_models(given), task, fetch=fetch)
        return with_adapters(found, adapters or ()), models_file.MODEL
    refuse_both(given)
    found = models_file.with_tasks(models_file.read_models(file), task, fetch=fetch)
    return with_adapters(found, adapters or ()), models_file.OPTION


def refuse_both(given: Sequence[str]) -> None:
    """Raise StartError if `given`, the values of --model, is not empty: --models is given, too."""
    from tritonembed_manager.server import models_file

    if given:
        raise StartError(f"{models_file.MODEL} and {models_file.OPTION} exclude each other")


def base_settings(
    options: "RepositoryOptions | ServeOptions", model: str, device: "machine.Device", **own: Any
) -> RenderSettings:
    """The settings that all models of a command share. model: name or folder of the first. own: other settings."""
    return RenderSettings(
        model=model_reference(model),
        device=device,
        tokenizer_instances=resolve_tokenizer_instances(options.tokenizer_instances, device),
        tensor_parallel_size=options.tensor_parallel_size,
        max_batch_tokens=options.max_batch_tokens,
        executor=options.executor,
        queue_limits=options.queue_limits,
        reference=resolve_reference(options.reference, options.no_reference),
        quantization_quality=options.quantization_quality,
        calibration=None if options.calibration is None else str(options.calibration),
        deterministic=options.deterministic,
        cache_bytes=options.cache_bytes,
        instruction_template=options.instruction_template,
        **own,
    )
