"""A worker's path of a request: admission, routing, failover."""
