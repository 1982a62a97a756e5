"""The options of the connection, taken before the command's name and after it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed._client import EmbeddingClient

from .failures import UsageError, usage_errors

Host = Annotated[str | None, typer.Option("--host", help="Server's name or address.", show_default="localhost")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="gRPC port.", show_default="50050")]
Model = Annotated[str | None, typer.Option("--model", help="The model that takes texts.", show_default="embedding")]
Tls = Annotated[bool | None, typer.Option("--tls", help="Encrypt the connection.", show_default=False)]
RootCertificates = Annotated[
    Path | None, typer.Option("--tls-root-certificates", help="PEM file of the authorities to trust.")
]
PrivateKey = Annotated[Path | None, typer.Option("--tls-private-key", help="PEM file of the client's own key.")]
CertificateChain = Annotated[
    Path | None, typer.Option("--tls-certificate-chain", help="PEM file of the client's own certificate.")
]
MetadataPairs = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="Sent with every request, such as a token; repeatable."),
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Seconds for everything.", show_default="no limit")
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
        return timeout

    @property
    def target(self) -> str:
        """host:port."""
        host = self._given.get("host", "localhost")
        # An IPv6 address has colons of its own.
        return f"{f'[{host}]' if ':' in host else host}:{self._given.get('port', 50050)}"

    def open(self, **more: Any) -> EmbeddingClient:
        """The client; UsageError where its settings do not fit together or a file cannot be read."""
        names = ("model", "root_certificates", "private_key", "certificate_chain")
        settings = {name: self._given[name] for name in names if name in self._given}
        tls = self._given.get("tls", False)
        if not tls and settings.keys() - {"model"}:
            raise UsageError("the --tls-… files need --tls")
        with usage_errors():
            pairs = [_pair(text) for text in self._given.get("metadata", [])]
            return EmbeddingClient(self.target, tls=tls, metadata=pairs, **settings, **more)


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of the connection and gets them as ``connection``."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "connection"]

    @functools.wraps(command)
    def wrapper(context: typer.Context, **given: Any) -> None:
        options = {name: given.pop(name) for name in OPTIONS}
        # Typer hands the object of the outer context, the application's, to the context of the command.
        context.obj = Connection(options, context.obj)
        command(connection=context.obj, **given)

    ours = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    ours += [_parameter(name, annotation, None) for name, annotation in OPTIONS.items()]
    # Typer reads the signature and the annotations to know a command's options.
    wrapper.__signature__ = inspect.Signature([*own, *ours])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *ours]}
    return wrapper


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError("--metadata is KEY=VALUE")
    return name, value
