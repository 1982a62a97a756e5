"""What all tests share."""

import signal

pytest_plugins = ["tests.models"]

# A shell's background job ignores Ctrl-C, one under nohup the hang-up, and what it starts inherits that: tests that
# send these signals would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
