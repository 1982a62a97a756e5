"""Turns the options of `serve` into its settings. Applies the machine's defaults and refuses contradictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import typer

from tritonembed_manager.commands.options import (
    base_settings,
    chosen_models,
    given_models,
    marked,
    on_command_line,
    refuse_both,
)
from tritonembed_manager.commands.serve import Mark, ServeOptions
from tritonembed_manager.errors import StartError
from tritonembed_manager.router.apis.http.cors import read_origins
from tritonembed_manager.router.control.discovery import ServersDns, ServersFile, parse_servers
from tritonembed_manager.router.control.envoy.settings import EnvoySettings, default_threads, find_envoy
from tritonembed_manager.router.control.health import HealthSettings
from tritonembed_manager.router.control.plan import VersionPlan, on_gpus, plan_servers, with_version_names
from tritonembed_manager.router.control.quota_store import open_store
from tritonembed_manager.router.control.restarts import RestartLimits
from tritonembed_manager.router.control.settings import AttachSettings, LaunchSettings, ModelsPlan, ServeSettings
from tritonembed_manager.router.control.tenants import OPTION as TENANTS
from tritonembed_manager.router.control.tenants import TenantsFile
from tritonembed_manager.router.control.watched_files import ServerFiles, TlsFiles, WatchedFile
from tritonembed_manager.router.data.hedging import P95, After
from tritonembed_manager.router.data.model_names import ServedNames, served_names
from tritonembed_manager.router.tls import CERTIFICATE, CLIENT_CA, KEY
from tritonembed_manager.server import vllm_arguments as engine_arguments
from tritonembed_manager.server.models_file import (
    MODEL,
    ModelEntry,
    adapters_of,
    by_name,
    checked,
    parse_models_file,
    render_settings,
    served_as,
    with_adapters,
    with_tasks,
)
from tritonembed_manager.server.models_file import OPTION as MODELS
from tritonembed_manager.server.settings import (
    resolve_device,
)
from tritonembed_protocol.served import FIRST, Task
from tritonembed_protocol.tls import GRPCS


def resolve(context: typer.Context, options: ServeOptions) -> ServeSettings:
    """Return the settings. Raises StartError if options contradict each other."""
    attaching = next((name for name in marked(ServeOptions, Mark.ATTACHED) if getattr(options, name)), None)
    if not attaching:
        for name, given in on_command_line(context).items():
            if name in marked(ServeOptions, Mark.OVER_TLS):
                raise StartError(f"{given} is for {Mark.OVER_TLS.value} (--server, --servers-file, --servers-dns)")
    if options.xds_port is None:
        for name, given in on_command_line(context).items():
            if name in marked(ServeOptions, Mark.XDS):
                raise StartError(f"{given} needs {Mark.XDS.value}")
    if attaching:
        names, launch = _names(_attached_models(context, options), options.served_model_name or ()), None
    else:
        names, launch = _launch(context, options)
    return ServeSettings(
        names=names,
        attach=_attach(context, options, attaching) if attaching else None,
        launch=launch,
        host=options.host,
        port=options.port,
        http_port=options.http_port,
        workers=options.workers,
        policy=options.load_balancing,
        health=HealthSettings(options.health_interval, options.health_timeout),
        forward_timeout=options.forward_timeout,
        startup_timeout=options.startup_timeout,
        lame_duck=options.lame_duck,
        drain_timeout=options.drain_timeout,
        max_in_flight=options.max_in_flight,
        max_in_flight_per_server=options.max_in_flight_per_server,
        log_format=options.log_format,
        http_header_timeout=options.http_header_timeout,
        receive_timeout=options.receive_timeout,
        min_receive_rate=options.min_receive_rate,
        max_connections_per_peer=options.max_connections_per_peer,
        admin=options.admin,
        accept_token_ids=options.accept_token_ids,
        cors_origins=read_origins(options.cors_origin or ()),
        hedge_after=_hedge_after(options.hedge_after),
        tls=_tls(options),
        tenants=_tenants(context, options),
        key_for_health=options.key_for_health,
        key_for_metrics=options.key_for_metrics,
        usage_file=options.usage_file,
        access_log=_access_log(options.access_log),
        quota_store=open_store(options.quota_store) if options.tenants and options.quota_store is not None else None,
        envoy=_envoy(context, options),
        xds=None if options.xds_port is None else (options.xds_host, options.xds_port),
    )


def _access_log(path: Path | None) -> str | None:
    """The absolute path of a file that can be appended to. Raises StartError."""
    if path is None:
        return None
    try:
        with path.open("a", encoding="utf-8"):
            return str(path.absolute())
    except OSError as error:
        raise StartError(f"--access-log: {error.strerror}") from None


def _attached_models(context: typer.Context, options: ServeOptions) -> list[ModelEntry]:
    """The models of attached servers. Only their names are known."""
    first, *more = given_models(context, options.model) or [FIRST]
    if any(given.endswith("%") for given in (first, *more)):
        raise StartError(f"{MODEL}: weights are for servers that are launched")
    entries = [_attached(first, options.task, is_first=True), *(_attached(name, options.task) for name in more)]
    return with_adapters(checked(entries, MODEL), options.adapter or (), attached=True)


def _attached(given: str, task: Task | None, *, is_first: bool = False) -> ModelEntry:
    """A model of attached servers, from NAME or NAME=TASK. task: the task if the model names none."""
    name, _, own = given.rpartition("=")
    tasks: tuple[Task, ...] = get_args(Task)
    for one in tasks:
        if name and own == one:
            given, task = name, one
    return ModelEntry(given, None if is_first else given, task=task)


def _names(entries: Sequence[ModelEntry], given: Sequence[str]) -> ServedNames:
    """The names of the models for clients. given: the names of the first model."""
    first, *more = [versions[0] for versions in by_name(entries)]
    names = served_names(first.path, given or ([first.name] if first.name else ()))
    for entry in more:
        if entry.label in names:
            raise StartError(f"--model: two models are called {entry.label}")
    served, *others = served_as([first, *more])
    further = tuple(ServedNames((one.label,), served=own) for one, own in zip(more, others, strict=True))
    adapters = adapters_of(entries)
    for one in adapters:
        if one.name in names:
            raise StartError(f"--adapter {one.name}: another model has this name")
    return replace(names, served=served, more=(*further, *(ServedNames((one.name,), served=one) for one in adapters)))


def _envoy(context: typer.Context, options: ServeOptions) -> EnvoySettings | None:
    if options.data_plane != "envoy":
        for name, given in on_command_line(context).items():
            if name in marked(ServeOptions, Mark.ENVOY):
                raise StartError(f"{given} is for {Mark.ENVOY.value}")
        return None
    over_tls = next((server for server in options.server or () if server.startswith(GRPCS)), None)
    if over_tls is not None:
        raise StartError("--data-plane envoy: Envoy does not reach servers with grpcs://")
    if options.tenants is not None and options.cache_bytes:
        raise StartError("--cache-bytes: through Envoy the vectors of tenants would not be kept apart")
    return EnvoySettings(
        binary=find_envoy(options.envoy),
        threads=options.envoy_threads or default_threads(),
        max_bytes=options.envoy_max_bytes,
        access_log=options.envoy_access_log.absolute() if options.envoy_access_log else None,
        log_verbose=options.log_verbose,
    )


def _tenants(context: typer.Context, options: ServeOptions) -> TenantsFile | None:
    if options.tenants is None:
        for name, given in on_command_line(context).items():
            if name in marked(ServeOptions, Mark.TENANTS):
                raise StartError(f"{given} needs {TENANTS}")
        return None
    if options.admin:
        raise StartError(f"--admin is for everybody; with {TENANTS}, the file names who may (`admin: true`)")
    return TenantsFile(options.tenants)


def _hedge_after(given: str | None) -> After | None:
    if given is None or given == P95:
        return given
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise StartError("--hedge-after must be p95, or seconds above 0")
    return seconds


def _tls(options: ServeOptions) -> TlsFiles | None:
    certificate, key = options.tls_cert, options.tls_key
    if certificate is None and key is None:
        if options.tls_client_ca is not None:
            raise StartError(f"{CLIENT_CA} needs {CERTIFICATE} and {KEY}")
        return None
    if certificate is None or key is None:
        raise StartError(f"{CERTIFICATE} and {KEY} go together")
    return TlsFiles(certificate, key, options.tls_client_ca)


def _attach(context: typer.Context, options: ServeOptions, attaching: str) -> AttachSettings:
    option = f"--{attaching.replace('_', '-')}"
    for name, given in on_command_line(context).items():
        if name in marked(ServeOptions, Mark.LAUNCHED):
            raise StartError(f"{given} is for servers that are launched; {option} attaches to others")
    if context.args:
        meant = engine_arguments.did_you_mean(context.args[0], engine_arguments.own_options(context))
        raise StartError(f"{context.args[0]} is for servers that are launched; {option} attaches to others{meant}")
    dns = options.servers_dns
    files = options.server_ca, options.server_cert, options.server_key
    if dns:
        parse_servers([dns], "--servers-dns")
    try:
        return AttachSettings(
            servers=parse_servers(options.server or (), "--server"),
            file=ServersFile(options.servers_file) if options.servers_file else None,
            dns=ServersDns(dns) if dns else None,
            tls=ServerFiles(*files) if any(files) else None,
        )
    except ValueError as error:
        raise StartError(str(error)) from None


def _launch(context: typer.Context, options: ServeOptions) -> tuple[ServedNames, LaunchSettings]:
    """The names of the models at the start, and the settings for launching their servers."""
    path, file = options.models, None
    if path is None:
        entries, option = chosen_models(context, options.model, None, options.task, options.adapter, fetch=True)
        if not entries:
            raise engine_arguments.missing_model(context, " (or --server, --servers-file, --servers-dns, to attach)")
        plan = _plan(context, options, entries, option)
    else:
        refuse_both(given_models(context, options.model))

        def parse(content: bytes) -> ModelsPlan:
            entries = with_tasks(parse_models_file(content, path.parent), options.task, fetch=True)
            return _plan(context, options, with_adapters(entries, options.adapter or ()), MODELS)

        file = WatchedFile(path, MODELS, "models", parse)
        plan = file.value
    launch = LaunchSettings(
        versions=plan.versions,
        host=options.replica_host,
        start_port=options.start_port,
        tritonserver=options.tritonserver,
        mps=options.mps,
        work_dir=options.work_dir,
        limits=RestartLimits(limit=options.max_restarts, window=options.restart_window),
        log_verbose=options.log_verbose,
        max_loaded=options.max_loaded,
        models_file=file,
        triton_traces=options.triton_traces,
    )
    return plan.names, launch


def _plan(context: typer.Context, options: ServeOptions, entries: Sequence[ModelEntry], option: str) -> ModelsPlan:
    """The models that are asked for. Raises StartError."""
    names = _names(entries, options.served_model_name or ())
    device = resolve_device(options.device)
    if device == "cpu":
        for name, given in on_command_line(context).items():
            if name in marked(ServeOptions, Mark.ON_A_GPU):
                raise StartError(f"{given} needs --device cuda")
    vllm: dict[str, Any] = engine_arguments.parse(context.args, own_options=engine_arguments.own_options(context))
    if device == "cuda":
        vllm["gpu_memory_utilization"] = options.gpu_memory_utilization
    base = base_settings(options, entries[0].path, device, vllm=vllm)
    versions: dict[str, list[VersionPlan]] = {}
    for entry, settings in zip(entries, render_settings(base, entries, option, options.max_loaded), strict=True):
        own = plan_servers(
            replace(settings, gpus=()),
            num_replicas=entry.replicas or options.num_replicas,
            num_gpus=len(entry.gpus) or options.num_gpus,
            assignment=options.gpu_assignment,
            servers=options.servers,
        )
        plans = tuple(on_gpus(plan, entry.gpus) if entry.gpus else plan for plan in own)
        version = VersionPlan(settings.served, replace(entry, weight=None), plans, entry.weight or 100.0)
        versions.setdefault(settings.served.name, []).append(version)
    _refuse_split(options, names, versions)
    return ModelsPlan(names, [named for own in versions.values() for named in with_version_names(own)])


def _refuse_split(options: ServeOptions, names: ServedNames, versions: Mapping[str, Sequence[VersionPlan]]) -> None:
    """Raises StartError if a model has versions and requests can't be divided between them."""
    for model, own in versions.items():
        if len(own) > 1 and any(version.entry.adapters for version in own):
            raise StartError(f"--adapter: {names.of_ensemble(model)} has versions, which can't have adapters")
        if len(own) > 1 and options.max_loaded is not None:
            raise StartError(f"--max-loaded: {names.of_ensemble(model)} has versions, which must all be in memory")
        if len(own) > 1 and options.xds_port is not None:
            raise StartError(f"--xds-port: {names.of_ensemble(model)} has versions, and clients would mix them")
        if len(own) > 1 and options.data_plane == "envoy" and model == names.served.name:
            raise StartError("--data-plane envoy: Envoy sends no part of the requests to a version of the first model")
