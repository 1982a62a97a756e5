"""What all tests share."""

import signal

pytest_plugins = ["tests.models"]

# A shell's background job ignores Ctrl-C, and what it starts inherits that: tests that send SIGINT would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
