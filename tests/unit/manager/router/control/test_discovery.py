"""Addresses of attached servers, and their lists."""

import asyncio
import os
import re

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.discovery import (
    Address,
    ServerLists,
    ServersDns,
    ServersFile,
    parse_address,
    parse_servers,
)
from tritonembed_manager.router.data.load_table import SLOTS


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:9000", Address("host:9000")),
        ("host:8001", Address("host:8001", "host:8000", "host:8002")),
        ("host:9000/9001", Address("host:9000", "host:9001")),
        (" host:9000/9001/9002\n", Address("host:9000", "host:9001", "host:9002")),
        ("[::1]:8001/1/2", Address("[::1]:8001", "[::1]:1", "[::1]:2")),
        ("grpcs://name@10.0.0.7:9000/9001", Address("grpcs://name@10.0.0.7:9000", "10.0.0.7:9001")),
    ],
)
def test_an_address_names_the_ports_of_grpc_http_and_metrics(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["host", "host:", "host:0", "host:70000", "::1:8001", "http://host:80", "a b:1", "a@b:1", ""]
)
def test_an_invalid_address_is_refused_with_the_option(text):
    with pytest.raises(StartError, match=r"--server: .* is not host:port"):
        parse_servers([text], "--server")


def test_a_server_given_twice_counts_once():
    assert len(parse_servers(["a:1", "b:1", "a:1"], "--server")) == 2


def test_a_file_has_comments_and_blank_lines(tmp_path):
    path = tmp_path / "servers"
    path.write_text("# all of them\n\na:1  # the first\nb:2/3/4\na:1\n")
    assert [address.grpc for address in ServersFile(path).read()] == ["a:1", "b:2"]


@pytest.mark.parametrize("content", [None, "", "# none\n", "a:1\nnonsense\n", b"\xff\xfe"])
def test_a_file_that_is_missing_empty_or_wrong_is_one_line_without_its_folder(tmp_path, content):
    path = tmp_path / "servers"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^--servers-file servers") as caught:
        ServersFile(path).read()
    assert str(tmp_path) not in str(caught.value)


async def test_a_name_stands_for_every_address_behind_it():
    assert await ServersDns("127.0.0.1:8001/8000").read() == [Address("127.0.0.1:8001", "127.0.0.1:8000")]
    assert Address("127.0.0.1:9000") in await ServersDns("localhost:9000").read()


async def test_over_tls_every_address_keeps_the_name_that_its_certificate_is_for():
    assert Address("grpcs://localhost@127.0.0.1:9000") in await ServersDns("grpcs://localhost:9000").read()
    assert Address("grpcs://other@127.0.0.1:9000") in await ServersDns("grpcs://other@localhost:9000").read()
    assert await ServersDns("grpcs://127.0.0.1:9000/9001").read() == [
        Address("grpcs://127.0.0.1:9000", "127.0.0.1:9001")
    ]


async def test_a_name_that_does_not_resolve_is_one_line():
    with pytest.raises(ValueError, match=r"--servers-dns no-such-host\.invalid does not resolve"):
        await ServersDns("no-such-host.invalid:8001").read()


class NoMoreTurnsError(Exception):
    pass


class Turns:
    """In place of the clock: each pause of the lists runs the test's next action."""

    def __init__(self, *actions):
        self._actions = list(actions)

    async def __call__(self, seconds):
        if not self._actions:
            raise NoMoreTurnsError
        self._actions.pop(0)()


async def test_changes_of_the_file_are_followed_and_faults_change_nothing(tmp_path, caplog):
    path = tmp_path / "servers"
    path.write_text("a:1\n")
    followed = []
    turns = Turns(
        lambda: None,
        lambda: path.write_text("a:1\nb:1\n"),
        lambda: None,
        lambda: path.write_text(""),
        lambda: None,
        lambda: path.unlink(),
        lambda: None,
        lambda: path.write_text("b:1\n"),
        lambda: None,
    )
    lists = ServerLists([Address("given:1")], ServersFile(path), None, followed.append, pause=turns)
    assert [address.grpc for address in await lists.first()] == ["given:1", "a:1"]
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert [[address.grpc for address in turn] for turn in followed] == [["given:1", "a:1", "b:1"], ["given:1", "b:1"]]


async def test_a_file_that_is_missing_at_the_start_stops_the_start(tmp_path):
    with pytest.raises(StartError, match="--servers-file"):
        await ServerLists([], ServersFile(tmp_path / "none"), None, lambda _: None).first()


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "servers"
    path.write_bytes(b"\xef\xbb\xbfa:1\r\nb:2\r\n")
    assert [address.grpc for address in ServersFile(path).read()] == ["a:1", "b:2"]


async def test_a_file_is_read_only_once_it_is_written_completely(tmp_path):
    path = tmp_path / "servers"
    path.write_text("a:1\n")
    followed = []
    # The file is read twice while it is written: first it has half an address, which is valid too, then nothing.
    writing = [
        lambda: path.write_text("a:1\nb:80"),
        lambda: path.write_text(""),
        lambda: path.write_text("a:1\nb:8001\n"),
    ]
    lists = ServerLists([], ServersFile(path), None, followed.append, pause=Turns(*writing, lambda: None))
    await lists.first()
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert [[address.grpc for address in turn] for turn in followed] == [["a:1", "b:8001"]]


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_endless(path):
    path.symlink_to("/dev/zero")


def make_huge(path):
    path.write_text("a:1\n")
    os.truncate(path, 1 << 40)


def make_long_line(path):
    path.write_text("x" * 100_000)


def make_control_bytes(path):
    path.write_bytes(b"\x1b[31ma b\x00:1\n")


@pytest.mark.parametrize(
    "make",
    [make_pipe, make_folder, make_endless, make_huge, make_long_line, make_control_bytes],
    ids=lambda f: f.__name__,
)
async def test_an_unreadable_file_is_one_short_line_at_once_and_changes_nothing(tmp_path, caplog, make):
    path = tmp_path / "servers"
    path.write_text("a:1\n")
    followed = []

    def spoil():
        path.unlink()
        make(path)

    lists = ServerLists([], ServersFile(path), None, followed.append, pause=Turns(spoil, *[lambda: None] * 5))
    await lists.first()
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert followed == []
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("--servers-file servers")
    assert line.endswith("; the list of servers does not change")
    assert len(line) < 250
    assert line.isprintable()


async def test_more_servers_than_there_is_room_for_are_one_line(tmp_path, caplog):
    path = tmp_path / "servers"
    many = "".join(f"host-{number}:1\n" for number in range(SLOTS + 1))
    path.write_text(many)
    with pytest.raises(StartError, match="servers are listed: no more than"):
        await ServerLists([], ServersFile(path), None, lambda _: None).first()
    path.write_text("a:1\n")
    followed = []
    turns = Turns(lambda: path.write_text(many), *[lambda: None] * 5)
    lists = ServerLists([], ServersFile(path), None, followed.append, pause=turns)
    await lists.first()
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert followed == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".org"])
async def test_an_impossible_name_is_one_line(name):
    with pytest.raises(ValueError, match=f"^--servers-dns {re.escape(name)} is not a host name$"):
        await ServersDns(f"{name}:8001").read()


async def test_a_name_without_addresses_changes_nothing(monkeypatch, caplog):
    async def none(*_, **__):
        return []

    dns, followed = ServersDns("localhost:9000"), []
    lists = ServerLists([], None, dns, followed.append, pause=Turns(*[lambda: None] * 3))
    await lists.first()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", none)
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert followed == []
    assert [record.getMessage() for record in caplog.records] == [
        "--servers-dns localhost has no address; the list of servers does not change"
    ]


async def test_a_name_that_gets_its_addresses_after_the_start_is_followed(monkeypatch, caplog):
    unknown, known = OSError(-2, "Name or service not known"), [(*[None] * 4, ("10.0.0.7", 0))]
    answers = [unknown, unknown, known, known]

    async def answer(*_, **__):
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    followed = []
    lists = ServerLists([], None, ServersDns("servers.example:9000"), followed.append, pause=Turns(*[lambda: None] * 3))
    assert await lists.first() == []
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert followed == [[Address("10.0.0.7:9000")]]
    # The second look-up fails as the first did, and is no news.
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "--servers-dns servers.example does not resolve: Name or service not known; it is looked up again every 5 s"
    ]


async def test_an_impossible_name_stops_the_start():
    with pytest.raises(StartError, match=r"--servers-dns a\.\.b is not a host name"):
        await ServerLists([], None, ServersDns("a..b:9000"), lambda _: None).first()


@pytest.mark.parametrize("host", ["a\x1bcb", "a\x07", "a\u202eb", "a\0", "\x9b2J"])
def test_an_address_with_control_sequences_is_refused(host, tmp_path):
    for text in (f"{host}:8001", f"{host}:8001/8000"):
        with pytest.raises(StartError) as caught:
            parse_servers([text], "--server")
        assert str(caught.value).isprintable()
    (tmp_path / "servers").write_text(f"good:8001\n{host}:8001\n")
    with pytest.raises(ValueError, match="is not host:port"):
        ServersFile(tmp_path / "servers").read()
