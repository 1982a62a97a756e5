"""Options of `tritonembed-bench run`: the settings they result in, and contradictions between them."""

from pathlib import Path
from typing import Any

import pytest
import typer
from tests.fakes.certificates import Files

from tritonembed_manager.commands.app import app
from tritonembed_perf.failures import UsageError
from tritonembed_perf.settings import DEFAULT_SERVERS, RunSettings


def settings(**given: Any) -> RunSettings:
    chosen = RunSettings(**given)
    chosen.check()
    return chosen


def test_without_options_the_load_is_a_closed_loop_of_the_published_defaults() -> None:
    chosen = settings()
    assert (chosen.address, chosen.sizes, chosen.load.requests) == ("localhost:50050", (1, 16, 64), 1024)
    assert (chosen.load.concurrency, chosen.prompt_length, chosen.distribution) == (16, 50, "fixed")
    assert (chosen.load.duration, chosen.load.rate) == (None, None)


@pytest.mark.parametrize("protocol", DEFAULT_SERVERS)
def test_the_default_server_is_our_manager_at_its_default_port(protocol: str) -> None:
    ports = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in ports}
    port = defaults["http_port" if protocol == "openai" else "port"]
    assert settings(protocol=protocol).address.endswith(f"localhost:{port}")


def test_a_rate_replaces_the_concurrency_and_a_duration_the_number_of_requests() -> None:
    load = settings(rate=5.0, duration=3.0).load
    assert (load.rate, load.concurrency) == (5.0, None)
    assert (load.duration, load.requests) == (3.0, None)


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 1.0, "concurrency": 2},
        {"duration": 1.0, "requests": 2},
        {"dataset": "texts.txt", "prompt_length": 2},
        {"dataset": "texts.txt", "distribution": "normal"},
    ],
)
def test_contradictions_name_both_options(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="contradict each other") as refused:
        settings(**given)
    assert all("--" + name.replace("_", "-") in str(refused.value) for name in given)


def test_an_encoding_is_only_for_openai() -> None:
    assert settings(protocol="openai", encoding="bytes").encoding == "bytes"
    with pytest.raises(UsageError, match="--encoding goes with --protocol openai"):
        settings(encoding="bytes")


def test_more_processes_than_requests_in_flight_are_refused() -> None:
    with pytest.raises(UsageError, match="--processes 5 is more than --concurrency 4"):
        settings(processes=5, concurrency=4)


@pytest.mark.parametrize(
    ("protocol", "server"),
    [
        *[("kserve", ""), ("kserve", "host"), ("kserve", "host:65536"), ("arctic", "http://host:1")],
        *[("openai", "host"), ("openai", "http://host:99999"), ("openai", "http://:80"), ("openai", "host:0")],
    ],
)
def test_an_invalid_address_is_refused_before_a_connection(protocol: str, server: str) -> None:
    with pytest.raises(UsageError, match="--server is host:port"):
        settings(protocol=protocol, server=server)


@pytest.mark.parametrize("server", ["host:8000", "http://host:8000/v1", "https://host"])
def test_openais_servers_are_addresses_or_urls(server: str) -> None:
    assert settings(protocol="openai", server=server).address == server


def test_each_batch_size_counts_once() -> None:
    assert settings(batch_sizes="1, 16,64,16").sizes == (1, 16, 64)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "1.5", "x"])
def test_batch_sizes_are_whole_numbers_from_one_on(text: str) -> None:
    with pytest.raises(UsageError, match="--batch-sizes"):
        settings(batch_sizes=text)


def test_a_server_over_tls_and_its_files(tmp_path: Path) -> None:
    files = Files(tmp_path)
    chosen = settings(server="grpcs://host:1", tls_ca=files.ca, tls_cert=files.certificate, tls_key=files.key)
    assert chosen.tls.ca == files.authority.pem
    assert settings(server="https://host:1", protocol="openai").tls.ca is None
    for wrong, reason in (
        ({"tls_ca": tmp_path / "nowhere"}, "--tls-ca cannot be read: No such file or directory"),
        ({"tls_cert": files.certificate}, "--tls-cert and --tls-key go together"),
        ({"tls_ca": files.key}, "--tls-ca has no certificate in PEM"),
    ):
        with pytest.raises(UsageError, match=f"^{reason}$"):
            _ = settings(server="grpcs://host:1", **wrong).tls
    with pytest.raises(UsageError, match="--server is host:port or grpcs://host:port"):
        settings(server="https://host:1")
