"""Settings for tests that care about some of them."""

from typing import Any

from tritonembed_manager.router.apis.http.connections import HttpLimits
from tritonembed_manager.router.control.health import HealthSettings
from tritonembed_manager.router.control.plan import ServerPlan, VersionPlan, with_version_names
from tritonembed_manager.router.control.restarts import RestartLimits
from tritonembed_manager.router.control.settings import LaunchSettings, ServeSettings
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.server.models_file import ModelEntry

HTTP: dict[str, Any] = {"receive_timeout": 60.0, "min_receive_rate": 4096.0, "max_connections_per_peer": 1024}


def http_limits(**changed: Any) -> HttpLimits:
    return HttpLimits(**{"header_timeout": 10.0, **HTTP, **changed})


def serve_settings(**changed: Any) -> ServeSettings:
    values: dict[str, Any] = {
        "names": ServedNames(("m",)),
        "launch": None,
        "attach": None,
        "host": "0.0.0.0",
        "port": 50050,
        "http_port": 8080,
        "workers": 1,
        "policy": "round_robin",
        "health": HealthSettings(interval=2.0, timeout=10.0),
        "forward_timeout": 60.0,
        "startup_timeout": 1800.0,
        "lame_duck": 0.0,
        "drain_timeout": 30.0,
        "max_in_flight": 4096,
        "max_in_flight_per_server": 1024,
        "log_format": "text",
        "http_header_timeout": 10.0,
        **HTTP,
        "admin": False,
    }
    return ServeSettings(**{**values, **changed})


def launch_settings(plans: list[ServerPlan]) -> LaunchSettings:
    version = VersionPlan(plans[0].render.served, ModelEntry(plans[0].render.model), tuple(plans))
    return LaunchSettings(
        versions=with_version_names([version]),
        host="127.0.0.1",
        start_port=50100,
        tritonserver=None,
        mps=True,
        work_dir=None,
        limits=RestartLimits(limit=5, window=600.0),
        log_verbose=False,
    )
