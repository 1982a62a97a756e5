"""The manager's log for people and for scripts."""

import json

import pytest

from tritonembed_manager.serve.control import logs


@pytest.fixture(autouse=True)
def _unset():
    yield
    import logging

    logger = logging.getLogger(logs.LOGGER)
    logger.handlers.clear()
    logger.propagate = True


def test_json_lines_have_time_level_event_and_fields(capsys):
    logs.set_up("json")
    logs.warn("server_unhealthy", "it is gone", server="server-0")
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "message": "it is gone", "event": "server_unhealthy", "server": "server-0"}


def test_text_lines_name_the_server(capsys):
    logs.set_up("text")
    logs.log("server_ready", "ready", server="server-0")
    logs.log("draining", "finishing")
    assert capsys.readouterr().err == "tritonembed-manager: server-0: ready\ntritonembed-manager: finishing\n"
