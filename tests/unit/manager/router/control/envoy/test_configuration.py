"""The real Envoy accepts its configuration, whatever the options."""

import json
from pathlib import Path

import pytest
from tests.fakes.certificates import Files
from tests.unit.manager.router.control.envoy.running import validate, whole_configuration, write

from tritonembed_manager.router.control.envoy import clusters, configuration
from tritonembed_manager.router.control.envoy.configuration import XdsFiles
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.tls import Pems


def complaint(folder: Path, **options: object) -> str:
    return validate(write(folder / "bootstrap.json", whole_configuration(folder, **options)))


@pytest.mark.parametrize("policy", ["least_loaded", "round_robin", "random"])
def test_every_policy_is_valid(tmp_path: Path, policy: str) -> None:
    assert complaint(tmp_path, policy=policy, sizes=[1, 12345], access_log=tmp_path / "log") == ""


def test_an_invalid_configuration_is_noticed(tmp_path: Path) -> None:
    configuration = whole_configuration(tmp_path)
    configuration["static_resources"]["clusters"][0]["outlier_detection"]["no_such_field"] = 1
    assert "no_such_field" in validate(write(tmp_path / "bootstrap.json", configuration))


def test_tls_with_client_certificates_is_valid(tmp_path: Path) -> None:
    files = Files(tmp_path)
    pems = Pems(files.certificate.read_text(), files.key.read_text(), files.ca.read_text())
    xds = XdsFiles(tmp_path)
    xds.write("certificate", configuration.certificate(pems))
    xds.write("client_ca", configuration.client_ca(pems.client_ca or ""))
    assert complaint(tmp_path, tls=True, client_ca=True) == ""


def test_only_ready_servers_get_new_requests() -> None:
    servers = [clusters.Endpoint("10.0.0.1", port, state) for port, state in enumerate(ServerState, start=1)]
    [group] = clusters.endpoints(servers)["endpoints"]
    health = {state: one["health_status"] for state, one in zip(ServerState, group["lb_endpoints"], strict=True)}
    assert {state for state, shown in health.items() if shown == "HEALTHY"} == {ServerState.READY}
    assert health[ServerState.DRAINING] == "DRAINING"


def test_a_server_whose_space_is_known_has_it() -> None:
    servers = [
        clusters.Endpoint("10.0.0.1", port, ServerState.READY, space) for port, space in ((1, "aa-16bit"), (2, ""))
    ]
    [group] = clusters.endpoints(servers)["endpoints"]
    known, unknown = group["lb_endpoints"]
    assert known["metadata"] == {"filter_metadata": {"tritonembed": {"embedding_space": "aa-16bit"}}}
    assert "metadata" not in unknown


def test_a_file_is_replaced_only_if_it_has_changed_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    files = XdsFiles(tmp_path)
    assert files.write("routes", {"a": 1})
    first = files.path("routes").stat().st_ino
    assert not files.write("routes", {"a": 1})
    assert files.path("routes").stat().st_ino == first
    assert files.write("routes", {"a": 2})
    assert json.loads(files.path("routes").read_text()) == {"version_info": "2", "resources": [{"a": 2}]}
    assert files.path("routes").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["routes.json"]
