"""`tritonembed-manager serve` as typer declares it; what it does is imported when it runs."""

# ruff: noqa: ARG001 - typer takes options from parameters; what shapes the servers is read from the context.

import typer

from tritonembed_manager import options
from tritonembed_manager.interrupts import abandonable_start
from tritonembed_manager.one_line import one_line_errors
from tritonembed_manager.serve.control import serve_options as own


def serve(
    context: typer.Context,
    model: own.Model = None,
    device: options.DeviceOption = None,
    host: options.Host = "0.0.0.0",
    port: options.Port = 50050,
    http_port: options.HttpPort = 8080,
    replica_host: own.ReplicaHost = "127.0.0.1",
    start_port: own.StartPort = 50100,
    num_replicas: own.NumReplicas = 2,
    num_gpus: own.NumGpus = 1,
    servers: own.NumServers = None,
    gpu_assignment: own.GpuAssignment = own.AssignmentChoice.dedicated,
    tensor_parallel_size: options.TensorParallelSize = 1,
    gpu_memory_utilization: own.GpuMemoryUtilization = 0.9,
    load_balancing: own.LoadBalancing = own.PolicyChoice.round_robin,
    workers: own.Workers = 1,
    server: own.Server = None,
    servers_file: own.ServersFile = None,
    servers_dns: own.ServersDns = None,
    health_interval: own.HealthInterval = 2.0,
    health_timeout: own.HealthTimeout = 10.0,
    forward_timeout: own.ForwardTimeout = 60.0,
    startup_timeout: options.StartupTimeout = 1800.0,
    drain_timeout: options.DrainTimeout = 30.0,
    max_in_flight: own.MaxInFlight = 4096,
    max_in_flight_per_server: own.MaxInFlightPerServer = 1024,
    max_restarts: own.MaxRestarts = 5,
    restart_window: own.RestartWindow = 600.0,
    tokenizer_instances: own.TokenizerInstances = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    executor: options.Executor = None,
    queue_limits: options.QueueLimits = False,
    reference: options.Reference = None,
    no_reference: options.NoReference = False,
    deterministic: options.Deterministic = False,
    mps: options.Mps = True,
    tritonserver: options.Tritonserver = None,
    work_dir: options.WorkDir = None,
    log_format: own.LogFormat = own.LogFormatChoice.text,
    log_verbose: options.LogVerbose = False,
    disable_log_request: own.DisableLogRequest = False,
) -> None:
    """Launch Triton servers, or attach to running ones, and serve all of them under one address."""
    with one_line_errors(), abandonable_start():
        from tritonembed_manager.serve.control.resolve import resolve
        from tritonembed_manager.serve.control.serving import run_serve

        run_serve(resolve(context))
