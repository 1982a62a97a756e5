"""What a program gets from its test (addresses and texts), and how it gives its vectors back. Standard library only."""

import asyncio
import json
import os
import sys

URL = os.environ["CLIENT_URL"]
"""The manager's HTTP port, such as http://127.0.0.1:8080."""
HTTP = URL.removeprefix("http://")
GRPC = os.environ["CLIENT_GRPC"]
"""The manager's gRPC port, as host:port."""
TEXTS = json.loads(os.environ["CLIENT_TEXTS"])
QUERY = "which of them is short?"
"""For rerankers."""


def give(**found):
    """Print results by name: lists of vectors, which are compared with the expected ones, or strings."""
    json.dump({name: _plain(value) for name, value in found.items()}, sys.stdout)


def wait_for(coroutine):
    """The result of a coroutine."""
    return asyncio.run(coroutine)


def _plain(value):
    if isinstance(value, str):
        return value
    return [[float(number) for number in vector] for vector in value]
