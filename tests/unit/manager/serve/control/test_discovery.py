"""Addresses of attached servers, and where they are listed."""

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.serve.control.discovery import Address, ServersDns, ServersFile, parse_address, parse_servers
from tritonembed_manager.serve.control.lists import ServerLists


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:9000", Address("host:9000")),
        ("host:8001", Address("host:8001", "host:8000", "host:8002")),
        ("host:9000/9001", Address("host:9000", "host:9001")),
        (" host:9000/9001/9002\n", Address("host:9000", "host:9001", "host:9002")),
        ("[::1]:8001/1/2", Address("[::1]:8001", "[::1]:1", "[::1]:2")),
    ],
)
def test_an_address_names_the_ports_of_grpc_http_and_metrics(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["host", "host:", "host:0", "host:70000", "::1:8001", "http://host:80", "a b:1", ""])
def test_what_is_no_address_is_refused_with_the_option(text):
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


async def test_a_name_that_does_not_resolve_is_one_line():
    with pytest.raises(ValueError, match=r"--servers-dns no-such-host\.invalid does not resolve"):
        await ServersDns("no-such-host.invalid:8001").read()


class NoMoreTurnsError(Exception):
    pass


class Turns:
    """Stands in for the clock: each pause of the lists lets the test do the next thing."""

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
        lambda: path.write_text(""),
        lambda: path.unlink(),
        lambda: path.write_text("b:1\n"),
    )
    lists = ServerLists([Address("given:1")], ServersFile(path), None, followed.append, pause=turns)
    assert [address.grpc for address in await lists.first()] == ["given:1", "a:1"]
    with pytest.raises(NoMoreTurnsError):
        await lists.run()
    assert [[address.grpc for address in turn] for turn in followed] == [["given:1", "a:1", "b:1"], ["given:1", "b:1"]]


async def test_a_file_that_is_missing_at_the_start_stops_it(tmp_path):
    with pytest.raises(StartError, match="--servers-file"):
        await ServerLists([], ServersFile(tmp_path / "none"), None, lambda _: None).first()


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "servers"
    path.write_bytes(b"\xef\xbb\xbfa:1\r\nb:2\r\n")
    assert [address.grpc for address in ServersFile(path).read()] == ["a:1", "b:2"]
