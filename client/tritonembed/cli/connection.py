"""The options of the connection, taken before the command's name, after it, and from the environment.

The variables begin with TRITONEMBED_CLIENT_: the servers' own, such as TRITONEMBED_MODEL, mean something else (a model
of the hub, the address to listen on) and are often set on the same machine.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed._client import EmbeddingClient

from .failures import UsageError, usage_errors

PREFIX = "TRITONEMBED_CLIENT_"
METADATA_VARIABLE = f"{PREFIX}METADATA"


def option(name: str, help: str, **more: Any) -> Any:
    """An option that is also an environment variable, named after it."""
    variable = name.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    return typer.Option(name, envvar=PREFIX + variable, help=help, **more)


Host = Annotated[str | None, option("--host", "Server's name or address.", show_default="localhost")]
Port = Annotated[int | None, option("--port", "gRPC port.", min=1, max=65535, show_default="50050")]
Model = Annotated[str | None, option("--model", "The model that takes texts.", show_default="embedding")]
Tls = Annotated[bool | None, option("--tls", "Encrypt the connection.", show_default=False)]
RootCertificates = Annotated[Path | None, option("--tls-root-certificates", "PEM file of the authorities to trust.")]
PrivateKey = Annotated[Path | None, option("--tls-private-key", "PEM file of the client's own key.")]
CertificateChain = Annotated[Path | None, option("--tls-certificate-chain", "PEM file of its certificate.")]
Timeout = Annotated[float | None, option("--timeout", "Seconds for everything.", min=0, show_default="no limit")]
# The variable is read below: typer would split its values, such as "authorization=Bearer …", at the spaces.
MetadataPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="KEY=VALUE",
        help=f"Sent with every request, such as a token; repeatable.  [env var: {METADATA_VARIABLE}, a pair a line]",
    ),
]

OPTIONS: dict[str, Any] = {
    "host": Host,
    "port": Port,
    "model": Model,
    "tls": Tls,
    "root_certificates": RootCertificates,
    "private_key": PrivateKey,
    "certificate_chain": CertificateChain,
    "metadata": MetadataPairs,
    "timeout": Timeout,
}


class Connection:
    """The options of the connection that were given; the command's own win over those before its name."""

    def __init__(self, given: dict[str, Any], outer: Connection | None) -> None:
        chosen = {name: value for name, value in given.items() if value is not None and value != []}
        self._given: dict[str, Any] = {**(outer._given if outer else {}), **chosen}

    @property
    def timeout(self) -> float | None:
        """Seconds for the whole command, or None."""
        timeout: float | None = self._given.get("timeout")
        if timeout is not None and not math.isfinite(timeout):
            raise UsageError("--timeout is a finite number of seconds; leave it out for no limit")
        return timeout

    @property
    def target(self) -> str:
        """host:port."""
        host = self._given.get("host", "localhost")
        # An IPv6 address has colons of its own.
        return f"{f'[{host}]' if ':' in host else host}:{self._given.get('port', 50050)}"

    def open(self, servers: list[str] | None = None, **more: Any) -> EmbeddingClient:
        """The client of the server, or of those ``servers`` (host:port) instead.

        UsageError where its settings do not fit together or a file cannot be read.
        """
        names = ("model", "root_certificates", "private_key", "certificate_chain")
        settings = {name: self._given[name] for name in names if name in self._given}
        tls = self._given.get("tls", False)
        if not tls and settings.keys() - {"model"}:
            raise UsageError("the --tls-… files need --tls")
        with usage_errors():
            pairs = [_pair(text) for text in self._given.get("metadata", [])]
            return EmbeddingClient(servers or self.target, tls=tls, metadata=pairs, **settings, **more)


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of the connection and gets them as ``connection``."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "connection"]

    @functools.wraps(command)
    def wrapper(context: typer.Context, **given: Any) -> None:
        options = {name: given.pop(name) for name in OPTIONS}
        if context.obj is None:
            options["metadata"] = options["metadata"] or os.environ.get(METADATA_VARIABLE, "").splitlines()
        else:
            # The application has read the environment already, and an option before the command's name wins over it.
            options = {name: value for name, value in options.items() if not _from_environment(context, name)}
        # Typer hands the object of the outer context, the application's, to the context of the command.
        context.obj = Connection(options, context.obj)
        command(connection=context.obj, **given)

    ours = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    ours += [_parameter(name, annotation, None) for name, annotation in OPTIONS.items()]
    # Typer reads the signature and the annotations to know a command's options.
    wrapper.__signature__ = inspect.Signature([*own, *ours])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *ours]}
    return wrapper


def _from_environment(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError("--metadata is KEY=VALUE")
    return name, value
