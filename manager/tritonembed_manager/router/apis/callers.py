"""The caller of a request: the connection that it came over.

A port belongs to one connection, so two clients behind one address are two callers.
"""

from typing import Any

from aiohttp import web

from tritonembed_manager.router.interfaces import Caller


def grpc_caller(context: Any) -> Caller:
    """The caller of a gRPC call, such as `ipv4:10.0.0.7:40312`."""
    return Caller(context.peer())


def http_caller(request: web.Request) -> Caller:
    """The caller of an HTTP request, such as `http:10.0.0.7:40312`; `http:` if its connection is closed already."""
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return Caller(f"http:{peer[0]}:{peer[1]}" if peer else "http:")
