"""What all tests share."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.models"]

# A shell's background job ignores Ctrl-C, one under nohup the hang-up, and what it starts inherits that: tests that
# send these signals would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine, or the tables that Hypothesis makes on its first use, are no failure of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
