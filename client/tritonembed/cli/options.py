"""Options that several commands have; the connection of a command, and waiting for a server that is starting.

Options of the connection come before the command's name, after it, and from the environment. The variables begin with
TRITONEMBED_CLIENT_: servers have variables of their own, such as TRITONEMBED_MODEL, which mean something else (a model
of the hub, the address to listen on) and are often set on the same machine.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any

import typer

from tritonembed import EmbeddingClient
from tritonembed._channel import API_KEY_VARIABLE
from tritonembed_protocol.limits import ENDPOINT_PORT, MAX_BATCH_SIZE
from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.tls import GRPCS, without_scheme
from tritonembed_protocol.types import InputType

from .failures import CommandError, UsageError, usage_errors

PREFIX = "TRITONEMBED_CLIENT_"
METADATA_VARIABLE = f"{PREFIX}METADATA"

# Of the wait for a server that is starting, in seconds.
POLL_EVERY = 0.5
REPORT_EVERY = 15.0
LONGEST_QUESTION = 5.0


def option(name: str, help: str, **more: Any) -> Any:
    """An option that is also an environment variable, named after it."""
    variable = name.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    return typer.Option(name, envvar=PREFIX + variable, help=help, **more)


Host = Annotated[str | None, option("--host", "Server's name or address.", show_default="localhost")]
Port = Annotated[int | None, option("--port", "gRPC port.", min=1, max=65535, show_default=str(ENDPOINT_PORT))]
Model = Annotated[str | None, option("--model", "Name of the model that embeds texts.", show_default="embedding")]
Tls = Annotated[bool | None, option("--tls", "Encrypt the connection.", show_default=False)]
RootCertificates = Annotated[
    Path | None, option("--tls-root-certificates", "PEM file of the certificate authorities to trust.")
]
PrivateKey = Annotated[Path | None, option("--tls-private-key", "PEM file of the client's own key.")]
CertificateChain = Annotated[
    Path | None, option("--tls-certificate-chain", "PEM file of the client's certificate chain.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        help="Key of a tenant, for a manager that requires one. Better in the variable: others can see command lines.",
    ),
]
Timeout = Annotated[float | None, option("--timeout", "Seconds for the whole command.", min=0, show_default="no limit")]
# The variable is read below: typer would split its values, such as "authorization=Bearer …", at spaces.
MetadataPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="KEY=VALUE",
        help=f"Sent with each request, such as a token; repeatable.  [env var: {METADATA_VARIABLE}, one pair per line]",
    ),
]

CONNECTION_OPTIONS: dict[str, Any] = {
    "host": Host,
    "port": Port,
    "model": Model,
    "tls": Tls,
    "root_certificates": RootCertificates,
    "private_key": PrivateKey,
    "certificate_chain": CertificateChain,
    "api_key": ApiKey,
    "metadata": MetadataPairs,
    "timeout": Timeout,
}

InputTypeOption = Annotated[
    InputType | None, option("--input-type", "Prepend the model's prompt for queries or passages.")
]
PromptName = Annotated[str | None, option("--prompt-name", "Name of the model's prompt to prepend.")]
Dimensions = Annotated[
    int | None,
    option("--dimensions", "Keep only the first dimensions of each vector.", min=1, show_default="the model's"),
]
Normalize = Annotated[
    bool | None,
    option("--normalize/--no-normalize", "Scale vectors to length 1, or do not.", show_default="the model's"),
]
Policy = Annotated[PolicyName, option("--policy", "Which --server gets the next request.")]
BatchSize = Annotated[int, option("--batch-size", "Texts per request.", min=1, max=MAX_BATCH_SIZE)]


class Connection:
    """The options of the connection that were given; options after the command's name win over options before it."""

    def __init__(self, given: dict[str, Any], outer: Connection | None) -> None:
        chosen = {name: value for name, value in given.items() if value is not None and value != []}
        self._given: dict[str, Any] = {**(outer._given if outer else {}), **chosen}

    def of_model(self, name: str) -> Connection:
        """This connection with another model."""
        return Connection({"model": name}, self)

    @property
    def timeout(self) -> float | None:
        """Seconds for the whole command, or None."""
        timeout: float | None = self._given.get("timeout")
        if timeout is not None and not math.isfinite(timeout):
            raise UsageError("--timeout must be a finite number of seconds; leave it out for no limit")
        return timeout

    @property
    def model(self) -> str | None:
        """What `--model` names; None if it was not given."""
        model: str | None = self._given.get("model")
        return model

    @property
    def target(self) -> str:
        """host:port."""
        host = self._given.get("host", "localhost")
        # An IPv6 address contains colons.
        return f"{f'[{host}]' if ':' in host else host}:{self._given.get('port', ENDPOINT_PORT)}"

    def open(self, servers: list[str] | None = None, **more: Any) -> EmbeddingClient:
        """The client of the server, or of ``servers`` (host:port, or grpcs://host:port) instead.

        Raises UsageError if settings do not fit together or a file cannot be read.
        """
        names = ("model", "api_key", "root_certificates", "private_key", "certificate_chain")
        settings = {name: self._given[name] for name in names if name in self._given}
        tls = self._given.get("tls", False)
        secure = any(server.startswith(GRPCS) for server in servers or ())
        if not (tls or secure) and settings.keys() - {"model", "api_key"}:
            raise UsageError(f"the --tls-… files need --tls, or --server {GRPCS}…")
        with usage_errors():
            pairs = [_pair(text) for text in self._given.get("metadata", [])]
            return EmbeddingClient(servers or self.target, tls=tls, metadata=pairs, **settings, **more)


def addresses(servers: list[str]) -> list[str]:
    """The values of `--server`. Raises UsageError for a value that is no address."""
    for server in servers:
        host, _, port = without_scheme(server)[0].rpartition(":")
        # gRPC would take a port that is too large modulo 65536.
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise UsageError(f"--server must be HOST:PORT, not {server}")
    return servers


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the connection, and their values as ``connection``."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "connection"]

    @functools.wraps(command)
    def wrapper(context: typer.Context, **given: Any) -> None:
        options = {name: given.pop(name) for name in CONNECTION_OPTIONS}
        if context.obj is None:
            options["metadata"] = options["metadata"] or os.environ.get(METADATA_VARIABLE, "").splitlines()
        else:
            # The application has read the environment; an option before the command's name wins over the environment.
            options = {name: value for name, value in options.items() if not _from_environment(context, name)}
        # Typer hands the object of the outer context, the application's, to the context of the command.
        context.obj = Connection(options, context.obj)
        command(connection=context.obj, **given)

    ours = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    ours += [_parameter(name, annotation, None) for name, annotation in CONNECTION_OPTIONS.items()]
    # Typer reads the signature and the annotations to know a command's options.
    wrapper.__signature__ = inspect.Signature([*own, *ours])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *ours]}
    return wrapper


def wait_until_started(
    client: EmbeddingClient,
    target: str,
    timeout: float | None,
    *,
    clock: Callable[[], float] = monotonic,
    pause: Callable[[float], None] = sleep,
) -> float | None:
    """Wait while the server is starting, but not for a server that is not there; what is left of ``timeout`` seconds.

    Raises CommandError if the timeout passes before.
    """
    start = clock()
    reported: float | None = None
    while True:
        left = None if timeout is None else timeout - (clock() - start)
        if left is not None and left <= 0:
            if reported is None:
                return timeout  # the request will fail for that reason
            raise CommandError(f"DeadlineExceededError: {target} is still starting; the timeout passed")
        if not client._is_starting(min(left or LONGEST_QUESTION, LONGEST_QUESTION)):
            return left
        now = clock()
        if reported is None or now - reported >= REPORT_EVERY:
            passed = "" if reported is None else f" ({now - start:.0f} s)"
            typer.echo(f"tritonembed: {target} is starting: waiting until it is ready{passed}", err=True)
            reported = now
        pause(POLL_EVERY if left is None else min(POLL_EVERY, left))


def _from_environment(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError("--metadata must be KEY=VALUE")
    return name, value
