"""The files of TLS: which of them can serve, and what happens when they change."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from tests.fakes.certificates import Authority, Files

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.watched_files import ServerFiles, TlsFiles
from tritonembed_manager.router.tls import Pems, server_context

AUTHORITY = Authority()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path, AUTHORITY)


def opened(files: Files) -> TlsFiles:
    return TlsFiles(files.certificate, files.key, files.ca)


def encrypted(files):
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"a password")
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, secret)
    )


def of_another(files):
    files.key.write_text(AUTHORITY.sign()[1])


def cut_off(path: str, part: float):
    def cut(files):
        file: Path = getattr(files, path)
        file.write_text(file.read_text()[: int(len(file.read_text()) * part)])

    return cut


def chain_cut_off(files):
    files.certificate.write_text(files.certificate.read_text() + files.ca.read_text()[:200])


WRONG = [
    (lambda files: files.certificate.unlink(), "--tls-cert cannot be read: No such file or directory"),
    (lambda files: files.key.unlink(), "--tls-key cannot be read: No such file or directory"),
    (lambda files: files.ca.unlink(), "--tls-client-ca cannot be read: No such file or directory"),
    (lambda files: files.certificate.write_text("no PEM"), "--tls-cert has no certificate in PEM"),
    (lambda files: files.certificate.write_bytes(b"\xff\x00"), "--tls-cert is not in PEM"),
    (lambda files: files.key.write_text("no PEM"), "--tls-key has no private key in PEM"),
    (lambda files: files.ca.write_text(""), "--tls-client-ca has no certificate in PEM"),
    (cut_off("certificate", 0.5), "--tls-cert has a certificate that is damaged or cut off"),
    (chain_cut_off, "--tls-cert has a certificate that is damaged or cut off"),
    (cut_off("key", 0.5), "--tls-key has a key that is damaged or cut off"),
    (cut_off("ca", 0.5), "--tls-client-ca has a certificate that is damaged or cut off"),
    (of_another, "--tls-key does not match --tls-cert"),
    (encrypted, "--tls-key is encrypted; a key without a password is needed"),
    (lambda files: files.renew(days=(-2, -1)), "--tls-cert is expired"),
    (lambda files: files.renew(days=(1, 2)), "--tls-cert is not valid yet"),
]


@pytest.mark.parametrize(("spoil", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_files_that_can_not_serve_end_the_start_with_one_line(files, spoil, reason):
    spoil(files)
    with pytest.raises(StartError) as caught:
        opened(files)
    assert str(caught.value) == reason


def test_a_pipe_or_a_folder_as_a_file_ends_the_start_too(files, tmp_path):
    with pytest.raises(StartError, match="--tls-cert cannot be read"):
        TlsFiles(tmp_path, files.key, None)
    with pytest.raises(StartError, match="--tls-key cannot be read: not a file"):
        TlsFiles(files.certificate, Path("/dev/null"), None)


def test_a_key_is_in_no_text_of_its_settings(files):
    assert "PRIVATE" not in repr(opened(files).value)


def test_old_versions_of_tls_are_refused(files):
    context = server_context(Pems(files.certificate.read_text(), files.key.read_text(), None))
    assert context.minimum_version.name == "TLSv1_2"


class NoMoreTurnsError(Exception):
    pass


async def watch(tls: TlsFiles, *actions) -> list[Pems]:
    """Watch the files while the test does its actions, one per pause. Returns what was passed on."""
    found: list[Pems] = []
    left = list(actions)

    async def pause(_seconds):
        if not left:
            raise NoMoreTurnsError
        left.pop(0)()

    with pytest.raises(NoMoreTurnsError):
        await tls.watch(found.append, pause)
    return found


def nothing():
    pass


async def test_new_files_are_passed_on_once(files, caplog):
    tls = opened(files)
    with caplog.at_level("INFO"):
        found = await watch(tls, nothing, nothing, files.renew, nothing, nothing, nothing)
    assert [pems.certificate for pems in found] == [files.certificate.read_text()]
    assert tls.value == found[0]
    assert len(caplog.messages) == 1


async def test_a_swap_of_a_link_is_noticed(tmp_path):
    # As Kubernetes does with the volume of a secret.
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        Files(folder, AUTHORITY)
    link, next_link = tmp_path / "data", tmp_path / "next"
    link.symlink_to(old)
    next_link.symlink_to(new)
    tls = TlsFiles(link / "tls.crt", link / "tls.key", None)
    found = await watch(tls, nothing, lambda: next_link.rename(link), nothing, nothing)
    assert [pems.key for pems in found] == [(new / "tls.key").read_text()]


@pytest.mark.parametrize(("spoil", "reason"), WRONG, ids=[reason for _, reason in WRONG])
async def test_files_that_can_not_serve_keep_the_old_ones_and_are_one_line(files, tmp_path, caplog, spoil, reason):
    tls = opened(files)
    before = tls.value
    found = await watch(tls, lambda: spoil(files), nothing, nothing, nothing)
    assert not found
    assert tls.value == before
    assert caplog.messages == [f"{reason}; the earlier certificate stays in use"]
    assert str(tmp_path) not in caplog.text


async def test_files_in_the_middle_of_being_written_are_no_line(files, caplog):
    tls = opened(files)
    found = await watch(tls, nothing, lambda: of_another(files), files.renew, nothing, nothing)
    assert len(found) == 1
    assert not caplog.messages


async def test_the_files_for_servers_are_watched_likewise(files, tmp_path, caplog):
    tls = ServerFiles(files.ca, files.certificate, files.key)
    before = tls.value
    with caplog.at_level("INFO"):
        found = await watch(
            tls, nothing, files.renew, nothing, nothing, lambda: files.key.write_text("no PEM"), *[nothing] * 3
        )
    assert [pems.certificate for pems in found] == [files.certificate.read_text()]
    assert found[0].ca == before.ca == files.authority.pem
    assert "new connections to grpcs:// servers" in caplog.messages[0]
    assert caplog.messages[1:] == ["--server-key has no private key in PEM; the earlier files stay in use"]
    assert str(tmp_path) not in caplog.text


def test_files_for_servers_that_can_not_serve_end_the_start(files):
    assert ServerFiles(files.ca, None, None).value.certificate is None
    with pytest.raises(StartError, match="--server-cert and --server-key go together"):
        ServerFiles(files.ca, files.certificate, None)
    files.ca.write_text("")
    with pytest.raises(StartError, match="--server-ca has no certificate in PEM"):
        ServerFiles(files.ca, None, None)
