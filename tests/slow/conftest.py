"""The real servers of the integration tests, for slow tests too."""

from tests.integration.conftest import client, model, preloaded, second_server, server, two_servers
from tests.integration.test_executor_scripts import script
from tests.integration.test_replica import replica
from tests.integration.test_serve_busy import manager as busy

__all__ = ["busy", "client", "model", "preloaded", "replica", "script", "second_server", "server", "two_servers"]
