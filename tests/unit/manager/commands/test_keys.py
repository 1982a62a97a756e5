"""`key`, and the options of `serve` and `status` about tenants."""

import json
import re
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.fakes.tenants import write_tenants
from tests.fakes.threaded import http_server
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.router.control.tenants import parse_tenants

KEY = "te-secret"
URLS = "redis://host:port/db, rediss://host:port/db or unix://path"
NAMES_WHO_MAY = "with --tenants, the file names who may (`admin: true`)"


def run(*arguments, **variables):
    result = CliRunner().invoke(app, [*map(str, arguments)], env=variables)
    return result.exit_code, result.output


def test_a_new_key_comes_with_the_entry_for_the_file():
    code, output = run("key", "--expires", "2027-06-30")
    key, *entry = output.splitlines()
    assert code == 0
    assert re.fullmatch(r"te-[\w-]{43}", key)
    [tenant] = parse_tenants("\n".join(["tenants:", "- name: a", "  keys:", *(f"  {line}" for line in entry)]).encode())
    assert tenant.keys[0].sha256 == sha256(key.encode()).hexdigest()
    assert tenant.keys[0].expires is not None
    assert run("key")[1].splitlines()[0] != key


def test_a_day_that_does_not_exist_is_one_line():
    assert run("key", "--expires", "2027-02-30") == (
        2,
        "tritonembed-manager: --expires must be a day such as 2027-06-30\n",
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--usage-file=u"], "--usage-file needs --tenants"),
        (["--quota-store=redis://h"], "--quota-store needs --tenants"),
        (["--tenants=T", "--quota-store=h:1"], f"--quota-store must be {URLS}"),
        (["--key-for-health"], "--key-for-health needs --tenants"),
        (["--no-key-for-metrics"], "--key-for-metrics needs --tenants"),
        (["--tenants=T", "--admin"], f"--admin is for everybody; {NAMES_WHO_MAY}"),
        (["--tenants=missing"], "--tenants: it cannot be read: No such file or directory"),
    ],
)
def test_options_that_do_not_fit_together_are_one_line(tmp_path, options, line):
    path = write_tenants(tmp_path / "T", a="")
    options = [option.replace("=T", f"={path}") for option in options]
    assert run("serve", "--server=127.0.0.1:1", *options) == (2, f"tritonembed-manager: {line}\n")


class Manager(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("Authorization") == f"Bearer {KEY}"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"served": True} if known else {"error": "the key is not known"}).encode())

    def log_message(self, *_):
        pass


def manager():
    return http_server(HTTPServer(("127.0.0.1", 0), Manager))


def test_status_sends_a_key_from_its_option_or_the_variable():
    with manager() as address:
        at = ("status", "--json", f"--manager={address}")
        assert run(*at, f"--api-key={KEY}")[0] == 0
        assert run(*at, TRITONEMBED_API_KEY=KEY)[0] == 0
        code, output = run(*at, TRITONEMBED_API_KEY="te-other")
        assert (code, output) == (
            1,
            f"tritonembed-manager: the manager at {address} refuses: the key is not known (--api-key)\n",
        )
