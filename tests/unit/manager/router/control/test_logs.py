"""The manager's log for people and for scripts."""

import io
import json

from tritonembed_manager.router.log import log, warn


def test_json_lines_have_time_level_event_and_fields(log_lines):
    stream = log_lines("json")
    warn("server_unhealthy", "it is gone", server="server-0")
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "message": "it is gone", "event": "server_unhealthy", "server": "server-0"}


def test_text_lines_name_the_server(log_lines):
    stream = log_lines("text")
    log("server_ready", "ready", server="server-0")
    log("draining", "finishing")
    assert stream.getvalue() == "tritonembed-manager: server-0: ready\ntritonembed-manager: finishing\n"
    assert isinstance(stream, io.StringIO)
