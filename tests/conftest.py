"""Settings for all tests."""

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.models"]

# One thread per process: test runs, servers and clients share the machine's cores, and threads that wait for other
# threads would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A background job of a shell ignores SIGINT, a job under nohup ignores SIGHUP, and child processes inherit that. Tests
# that send these signals would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests must not fail because the machine is busy or because Hypothesis makes its tables on first use.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
