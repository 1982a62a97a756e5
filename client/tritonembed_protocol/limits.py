"""Limits and addresses that the client, the engine and the manager share."""

MAX_BATCH_SIZE = 1024
"""Sentences per request."""

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""Bytes of text per request; a setting of the engine."""

MAX_TEXT_CHUNKS = 1024
"""Chunks of one text."""

MAX_REQUEST_CHUNKS = 4096
"""Chunks of all texts of a request."""

MAX_INT64 = 2**63 - 1
"""The largest number that a request parameter holds."""

ENDPOINT_PORT = 50050
"""gRPC of the manager's endpoint: the default target of a client."""
ENDPOINT_HTTP_PORT = 8080

SERVER_PORT = 50051
"""gRPC of one Triton server that the manager starts."""
SERVER_HTTP_PORT = 8000
SERVER_METRICS_PORT = 8002
