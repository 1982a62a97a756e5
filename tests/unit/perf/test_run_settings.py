"""Options of `tritonembed-bench run`: what they come to, and which contradict each other."""

from typing import Any

import pytest
import typer

from tritonembed_manager.commands import app
from tritonembed_perf.failures import UsageError
from tritonembed_perf.run.presets import PRESETS
from tritonembed_perf.run.settings import DEFAULT_SERVERS, make_settings, parse_batch_sizes

REQUIRED = {
    "protocol": "kserve",
    "warm_up": 1.0,
    "timeout": 60.0,
    "reference": "server",
    "min_cosine": 0.999,
    "seed": 0,
}


def settings(**given: Any) -> Any:
    return make_settings(REQUIRED | given)


def test_without_options_it_is_a_closed_loop_of_the_published_defaults() -> None:
    chosen = settings()
    assert (chosen.server, chosen.batch_sizes, chosen.requests) == ("localhost:50050", (1, 16, 64), 1024)
    assert (chosen.concurrency, chosen.prompt_length, chosen.distribution) == (16, 50, "fixed")
    assert (chosen.duration, chosen.rate) == (None, None)


@pytest.mark.parametrize("protocol", DEFAULT_SERVERS)
def test_without_a_server_it_is_our_manager_where_it_listens_by_default(protocol: str) -> None:
    ports = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in ports}
    port = defaults["http_port" if protocol == "openai" else "port"]
    assert settings(protocol=protocol).server.endswith(f"localhost:{port}")


def test_a_rate_replaces_the_concurrency_and_a_duration_the_number_of_requests() -> None:
    chosen = settings(rate=5.0, duration=3.0)
    assert (chosen.rate, chosen.concurrency) == (5.0, None)
    assert (chosen.duration, chosen.requests) == (3.0, None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_whole_load(name: str) -> None:
    chosen, preset = settings(preset=name), PRESETS[name]
    assert (chosen.requests, chosen.concurrency) == (preset.requests, preset.concurrency)
    assert (chosen.prompt_length, chosen.batch_sizes) == (preset.prompt_length, preset.batch_sizes)
    assert chosen.preset == name


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 1.0, "concurrency": 2},
        {"duration": 1.0, "requests": 2},
        {"dataset": "texts.txt", "prompt_length": 2},
        {"dataset": "texts.txt", "distribution": "normal"},
        {"preset": "h200-long", "requests": 2},
        {"preset": "h200-long", "batch_sizes": (1,)},
        {"preset": "h200-long", "rate": 2.0},
        {"preset": "h200-long", "dataset": "texts.txt"},
    ],
)
def test_contradictions_name_both_options(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="contradict each other") as refused:
        settings(**given)
    assert all("--" + name.replace("_", "-") in str(refused.value) for name in given)


def test_an_encoding_is_openais_alone() -> None:
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
def test_what_is_no_address_is_refused_before_it_is_called(protocol: str, server: str) -> None:
    with pytest.raises(UsageError, match="--server is host:port"):
        settings(protocol=protocol, server=server)


@pytest.mark.parametrize("server", ["host:8000", "http://host:8000/v1", "https://host"])
def test_openais_servers_are_addresses_or_urls(server: str) -> None:
    assert settings(protocol="openai", server=server).server == server


def test_each_batch_size_counts_once() -> None:
    assert parse_batch_sizes("1, 16,64,16") == (1, 16, 64)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "1.5", "x"])
def test_batch_sizes_are_whole_numbers_from_one_on(text: str) -> None:
    with pytest.raises(UsageError, match="--batch-sizes"):
        parse_batch_sizes(text)
