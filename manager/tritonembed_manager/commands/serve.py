"""The command `tritonembed-manager serve` and its options. It imports its implementation only when it runs."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from tritonembed_manager.commands import options as shared
from tritonembed_manager.commands.options import with_options
from tritonembed_manager.errors import one_line_errors
from tritonembed_manager.router.control.envoy.settings import MAX_BYTES
from tritonembed_manager.router.control.plan import Assignment
from tritonembed_manager.server.environment import import_grpc_quietly
from tritonembed_manager.server.machine import FIRST_PORT
from tritonembed_manager.server.settings import GPU_MEMORY_UTILIZATION, LOOPBACK
from tritonembed_manager.server.signals import abandonable_start
from tritonembed_protocol.limits import ENDPOINT_HTTP_PORT, ENDPOINT_PORT
from tritonembed_protocol.policies import PolicyName


class Mark(Enum):
    """What an option is for."""

    LAUNCHED = "servers that are launched"
    ON_A_GPU = "servers on a GPU"
    ATTACHED = "servers that run already"
    OVER_TLS = "attached servers with grpcs://"
    ENVOY = "--data-plane envoy"
    TENANTS = "tenants"
    XDS = "--xds-port"


_Option = TypeVar("_Option")
Launched = Annotated[_Option, Mark.LAUNCHED]
LaunchedOnAGpu = Annotated[_Option, Mark.LAUNCHED, Mark.ON_A_GPU]
Attached = Annotated[_Option, Mark.ATTACHED]
AttachedOverTls = Annotated[_Option, Mark.OVER_TLS]
WithEnvoy = Annotated[_Option, Mark.ENVOY]
ForTenants = Annotated[_Option, Mark.TENANTS]
WithXds = Annotated[_Option, Mark.XDS]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options, in the order of `--help`."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            None,
            help="Name on the Hugging Face hub, or a folder; with attached servers, the name that clients use. "
            "Repeatable: each further model is NAME=PATH, and a version of one NAME=PATH@10%; with attached servers "
            "NAME, or NAME=score for a reranker.",
        ),
    ]
    models: Launched[shared.ModelsFile]
    adapter: shared.Adapters
    max_loaded: Launched[
        Annotated[
            int | None,
            typer.Option(
                None,
                min=1,
                help="Models in memory at a time. A request for another model loads it in place of the least recently "
                "used one; by default all are in memory.",
            ),
        ]
    ]
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            None,
            help="Names of the first model for clients, on every endpoint. As in vLLM, several are allowed; answers "
            "have the first. By default a folder's last part, or the name on the hub.",
        ),
    ]
    device: Launched[shared.Device]
    host: shared.Host
    port: shared.Port = ENDPOINT_PORT
    http_port: shared.HttpPort = ENDPOINT_HTTP_PORT
    replica_host: Launched[Annotated[str, typer.Option(LOOPBACK, help="Address on which launched servers listen.")]]
    start_port: Launched[
        Annotated[
            int,
            typer.Option(
                FIRST_PORT,
                min=1,
                max=65535,
                help="First port of launched servers, three per server; ports in use are skipped.",
            ),
        ]
    ]
    num_replicas: Launched[Annotated[int, typer.Option(2, min=1, help="Replicas of each model, in all.")]]
    num_gpus: LaunchedOnAGpu[Annotated[int, typer.Option(1, min=1, help="GPUs to use.")]]
    servers: Launched[
        Annotated[
            int | None,
            typer.Option(None, min=1, help="Triton servers to launch; by default one per GPU, or one on a CPU."),
        ]
    ]
    gpu_assignment: LaunchedOnAGpu[
        Annotated[
            Assignment,
            typer.Option(
                "dedicated",
                help="dedicated: each server owns its GPUs; shared: every server has replicas on all of them.",
            ),
        ]
    ]
    tensor_parallel_size: Launched[shared.TensorParallelSize]
    gpu_memory_utilization: LaunchedOnAGpu[
        Annotated[
            float,
            typer.Option(
                GPU_MEMORY_UTILIZATION, min=0.01, max=1.0, help="Part of a GPU's memory, divided among its replicas."
            ),
        ]
    ]
    # Arctic Inference's default.
    load_balancing: Annotated[PolicyName, typer.Option("round_robin", help="Which server gets the next request.")]
    workers: Annotated[
        int,
        typer.Option(
            1, min=1, max=256, help="Processes of the manager that share its ports (not threads of a server)."
        ),
    ]
    data_plane: Annotated[
        Literal["workers", "envoy"],
        typer.Option(
            "workers",
            help="What forwards requests: the manager's workers, or Envoy, which is faster with single sentences "
            "(extra `envoy`).",
        ),
    ]
    envoy_threads: WithEnvoy[
        Annotated[
            int | None,
            typer.Option(None, min=1, max=256, help="Threads of Envoy; by default a quarter of the cores, at most 4."),
        ]
    ]
    envoy_max_bytes: WithEnvoy[
        Annotated[
            int,
            typer.Option(MAX_BYTES, min=1, help="Larger gRPC requests go to the workers instead of a server."),
        ]
    ]
    envoy_access_log: WithEnvoy[
        Annotated[Path | None, typer.Option(None, help="A file to which Envoy appends a line of JSON per request.")]
    ]
    envoy: WithEnvoy[
        Annotated[Path | None, typer.Option(None, help="Envoy's program; by default that of the extra `envoy`.")]
    ]
    xds_port: Annotated[
        int | None,
        typer.Option(
            None,
            min=1,
            max=65535,
            help="Serve the servers and their states over xDS, for an Envoy or for gRPC clients (xds:///embedding) of "
            "your own, which then send requests to the servers directly, past keys and checks.",
        ),
    ]
    xds_host: WithXds[Annotated[str, typer.Option(LOOPBACK, help="Address of --xds-port.")]]
    server: Attached[
        Annotated[
            list[str] | None,
            typer.Option(
                None,
                help="Attach to a running server instead of launching: host:port of gRPC, or "
                "host:port/http_port/metrics_port. With grpcs:// before it, gRPC is over TLS. Repeatable.",
            ),
        ]
    ]
    servers_file: Attached[
        Annotated[
            Path | None,
            typer.Option(
                None,
                help="Attach to the servers in this file, one per line. The file is watched: servers join and leave.",
            ),
        ]
    ]
    servers_dns: Attached[
        Annotated[
            str | None, typer.Option(None, help="Attach to every address of name:port, which is looked up every 5 s.")
        ]
    ]
    server_ca: AttachedOverTls[
        Annotated[
            Path | None,
            typer.Option(None, help="The authorities to trust with grpcs:// servers (PEM); by default gRPC's own."),
        ]
    ]
    server_cert: AttachedOverTls[
        Annotated[
            Path | None, typer.Option(None, help="The manager's certificate (PEM), if grpcs:// servers require one.")
        ]
    ]
    server_key: AttachedOverTls[Annotated[Path | None, typer.Option(None, help="The key of --server-cert (PEM).")]]
    health_interval: Annotated[float, typer.Option(2.0, min=0.05, help="Seconds between two checks of a server.")]
    health_timeout: Annotated[float, typer.Option(10.0, min=0.05, help="Seconds for the answer to a check.")]
    forward_timeout: Annotated[float, typer.Option(60.0, min=0.001, help="Seconds for a request without a deadline.")]
    startup_timeout: shared.StartupTimeout
    lame_duck: Annotated[
        float,
        typer.Option(
            0.0,
            min=0,
            help="Seconds after SIGTERM, before the drain, in which health is negative and requests are still "
            "answered.",
        ),
    ]
    drain_timeout: shared.DrainTimeout
    max_in_flight: Annotated[
        int, typer.Option(4096, min=1, help="Requests at one time, in total; more are refused as overload.")
    ]
    max_in_flight_per_server: Annotated[
        int,
        typer.Option(1024, min=1, help="Requests at one time per server, waiting requests included; more are refused."),
    ]
    hedge_after: Annotated[
        str | None,
        typer.Option(
            None,
            help="Send a late interactive request (priority 1) to an idle server, too; the first answer counts. Late "
            "is p95 (slower than 95 of 100 such requests), or a number of seconds. At most 5 % more requests. Off "
            "by default.",
        ),
    ]
    max_restarts: Launched[
        Annotated[
            int, typer.Option(5, min=0, help="Restarts of a server within --restart-window before it stays down.")
        ]
    ]
    restart_window: Launched[
        Annotated[float, typer.Option(600.0, min=1, help="Seconds in which restarts are counted.")]
    ]
    tokenizer_instances: Launched[
        Annotated[
            int | None,
            typer.Option(
                None,
                min=1,
                help="Tokenizer instances per server; by default 8 with a GPU, 2 without, at most one per core.",
            ),
        ]
    ]
    max_batch_tokens: Launched[shared.MaxBatchTokens]
    executor: Launched[shared.Executor]
    queue_limits: Launched[shared.QueueLimits] = False
    reference: Launched[shared.Reference]
    no_reference: Launched[shared.NoReference]
    quantization_quality: Launched[shared.QuantizationQuality]
    calibration: Launched[shared.Calibration]
    deterministic: Launched[shared.Deterministic]
    cache_bytes: Launched[shared.CacheBytes]
    instruction_template: Launched[shared.InstructionTemplate]
    task: shared.ModelTask
    mps: LaunchedOnAGpu[shared.Mps]
    tritonserver: Launched[shared.Tritonserver]
    work_dir: Launched[shared.WorkDir]
    admin: Annotated[
        bool,
        typer.Option(
            False,
            help="Let anyone who reaches the ports change servers: load and unload models, log and trace settings. "
            "Such calls are refused by default. With --tenants, the file names who may.",
        ),
    ]
    accept_token_ids: Annotated[
        bool,
        typer.Option(
            False,
            help="Accept any token ids over HTTP's /v1. By default they must have the special tokens that the model's "
            "tokenizer adds to every text, and a model without special tokens takes text only.",
        ),
    ]
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            None,
            help="Let web pages of this origin, such as https://app.example, call the HTTP port from a browser; * for "
            "all. Repeatable. By default browsers refuse.",
        ),
    ]
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            None,
            help="Speak TLS on both ports, with this certificate (PEM; intermediate certificates may follow). If "
            "the files change, new connections get the new certificate.",
        ),
    ]
    tls_key: Annotated[Path | None, typer.Option(None, help="The key of --tls-cert (PEM, without a password).")]
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(None, help="Require a certificate of each client, signed by one of these authorities (PEM)."),
    ]
    tenants: Annotated[
        Path | None,
        typer.Option(
            None,
            help="Require a key of each caller. This file (YAML) has the tenants with their keys and limits; it is "
            "watched.",
        ),
    ]
    key_for_health: ForTenants[
        Annotated[
            bool,
            typer.Option(
                False, "--key-for-health/--no-key-for-health", help="Whether health and readiness need a key."
            ),
        ]
    ]
    key_for_metrics: ForTenants[
        Annotated[
            bool,
            typer.Option(
                True,
                "--key-for-metrics/--no-key-for-metrics",
                help="Whether metrics and the status need a key, of a tenant with `monitor` or `admin`.",
            ),
        ]
    ]
    usage_file: ForTenants[
        Annotated[
            Path | None,
            typer.Option(None, help="Append a line of JSON per tenant and minute: its requests and tokens."),
        ]
    ]
    quota_store: ForTenants[
        Annotated[
            str | None,
            typer.Option(
                None,
                help="Count quotas together with other managers, in the Redis at redis://host:port/db. If it does not "
                "answer, each manager keeps to its share.",
            ),
        ]
    ]
    access_log: Annotated[
        Path | None,
        typer.Option(
            None, help="Append a line of JSON per request, without any text: /dev/stderr, or a file that you rotate."
        ),
    ]
    http_header_timeout: Annotated[
        float,
        typer.Option(
            10.0, min=0.1, help="Seconds for the line and the headers of an HTTP request, and for a TLS handshake."
        ),
    ]
    receive_timeout: Annotated[
        float, typer.Option(60.0, min=0.1, help="Seconds for a request to arrive: an HTTP body, or a gRPC message.")
    ]
    min_receive_rate: Annotated[
        float,
        typer.Option(4096.0, min=0, help="Bytes per second, over five seconds, that an HTTP body must bring."),
    ]
    max_connections_per_peer: Annotated[
        int, typer.Option(1024, min=1, help="HTTP connections per address and worker; more are closed.")
    ]
    log_format: Annotated[Literal["text", "json"], typer.Option("text", help="Text for people, or JSON.")]
    log_verbose: shared.LogVerbose
    triton_traces: Launched[shared.TritonTraces]
    disable_log_request: Annotated[
        bool,
        typer.Option(False, help="Accepted for compatibility with Arctic Inference: requests are never logged."),
    ]


@with_options
def serve(context: typer.Context, options: ServeOptions) -> None:
    """Launch Triton servers, or attach to running ones, and serve all of them under one address."""
    with one_line_errors(), abandonable_start():
        import_grpc_quietly()
        from tritonembed_manager.commands.resolve_serve import resolve
        from tritonembed_manager.router.control.supervisor import run_serve

        run_serve(resolve(context, options))
