"""The APIs of a worker, over gRPC and HTTP."""
