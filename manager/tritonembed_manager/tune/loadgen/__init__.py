"""The load generator: client processes that send requests which were encoded before the clock started."""
