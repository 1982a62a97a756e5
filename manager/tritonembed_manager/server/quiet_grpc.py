"""The log of gRPC's core, which would write lines of its own to stderr, such as one per failed handshake."""

import importlib
import os

_VARIABLE = "GRPC_VERBOSITY"


def import_grpc_quietly() -> None:
    """Import gRPC so that its core writes nothing to stderr, unless the user has set its variable.

    gRPC reads the variable when it is imported. Processes that are started later don't inherit it.
    """
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = "NONE"
    try:
        importlib.import_module("grpc")
    finally:
        del os.environ[_VARIABLE]
